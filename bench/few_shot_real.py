"""Every few-shot method on real pictures: blood cells, nuclei by how they were made visible, thirds of the heart.

    python bench/few_shot_real.py path/to/data       which holds bccd, nuclei_dsb2018 and sunnybrook

Each data set is a study of the project, with three draws of pictures. Methods have their published settings, but each
one that is searched finds its rate by `lr: auto`, on the same validation pictures. A run that was stopped goes on.
"""

import contextlib
import csv
import random
import runpy
import sys
from pathlib import Path
from typing import Any

from bccd_crops import main as cut_cells
from common import WORK, write_results
from medical_real import HEART, data_of, parts_of

from cones.common.files import file_hash, fresh_folder, read_json
from cones.common.layout import PREPARED, STUDIES
from cones.config.params import parse_params
from cones.config.plan import write_plan
from cones.data.pictures import open_picture
from cones.data.prepared import SPLITS
from cones.readers.prepare import prepare

ROOT = Path(__file__).parent.parent
PLACE = WORK / "few_shot_real"
AUTO = ("coop", "cocoop", "vpt_shallow", "vpt_deep", "upt", "cones", "taskres", "tip_adapter_f")
FIXED = ("zero_shot", "lp_plus_plus", "tip_adapter", "linear_probe")
SETS: dict[str, dict[str, Any]] = {
    "cells": {"shots": [16], "names": {"RBC": "red blood cell", "WBC": "white blood cell", "Platelets": "platelet"}},
    "nuclei": {"shots": [16], "names": {"fluorescence": "nucleus in fluorescence", "stained": "stained nucleus"}},
    "heart": {"shots": [8], "names": {"basal": "base of the heart", "mid": "middle of the heart",
                                      "apical": "apex of the heart"}},
}  # fmt: skip
"""Shots, and what classes are called; an image of nuclei and a patient's heart are in one split alone."""
EACH, CROP = 3, 48
"""Nuclei that are cut from a picture, and the side of a cut in pixels."""


def cut_nuclei(source: Path, out: Path) -> None:
    """Cuts around nuclei in folders of their kind; 60 % of each kind's pictures are for training, 20 % for test."""
    kinds = {line["id"]: line["kind"] for line in csv.DictReader((source / "kinds.csv").open())}
    for kind in sorted(set(kinds.values())):
        pictures = sorted(name for name, of in kinds.items() if of == kind)
        random.Random(0).shuffle(pictures)
        ends = (0, len(pictures) * 6 // 10, len(pictures) * 8 // 10, len(pictures))
        for split, start, end in zip(SPLITS, ends, ends[1:]):
            (out / split / kind).mkdir(parents=True)
            for name in pictures[start:end]:
                _cut(source / "stage1_train" / name, out / split / kind)


def _cut(folder: Path, out: Path) -> None:
    picture = open_picture(folder / "images" / f"{folder.name}.png")
    masks = sorted((folder / "masks").glob("*.png"))
    for number, mask in enumerate(random.Random(folder.name).sample(masks, min(EACH, len(masks)))):
        left, top, right, bottom = open_picture(mask).convert("L").getbbox()
        x, y, half = (left + right) // 2, (top + bottom) // 2, max(CROP, right - left, bottom - top) // 2
        picture.crop((x - half, y - half, x + half, y + half)).convert("RGB").save(out / f"{folder.name}-{number}.png")


def make_pictures(source: Path) -> None:
    """The class folders of cells and nuclei, and the patches of the heart as prepared; what is there stays."""
    for name, cut, of in (("cells", cut_cells, "bccd/BCCD"), ("nuclei", cut_nuclei, "nuclei_dsb2018")):
        if not (PLACE / "pictures" / name).exists():
            with fresh_folder(PLACE / "pictures" / name) as out:
                cut(source / of, out)
    if not (PLACE / PREPARED / "heart").exists():
        prepare(data_of(HEART[0], source, 1), PLACE / "slices")
        with fresh_folder(PLACE / PREPARED / "heart") as out:
            parts_of(PLACE / "slices", out)


def params_of() -> dict[str, Any]:
    methods = {name: {"name": name, "lr": "auto"} for name in AUTO} | {name: {"name": name} for name in FIXED}
    studies = {name: {"data": name, "backbone": "clip-tiny", "seeds": 3, "methods": methods, **of}
               for name, of in SETS.items()}  # fmt: skip
    data = {name: {"kind": "folder", "source": f"pictures/{name}"} for name in SETS}
    backbones = {"clip-tiny": {"kind": "clip", "source": str(ROOT / "models/backbones/clip-tiny")}}
    return {"backbones": backbones, "data": data, "concepts": {}, "runs": {}, "studies": studies}


def main(source: Path) -> None:
    make_pictures(source)
    params = parse_params(params_of(), "what is measured")
    with contextlib.chdir(PLACE):
        write_plan(params)
        for name in SETS:
            if not (PREPARED / name).exists():
                _stage("prepare", name)
            _stage("study", name)
        studies = {name: read_json(STUDIES / name / "summary.json") for name in SETS}
        hashes = {name: file_hash(PREPARED / name / "test/manifest.json")[:12] for name in SETS}
    write_results("few_shot_real", {"rates": "lr: auto", "test_manifests": hashes, "studies": studies})


def _stage(stage: str, name: str) -> None:
    runpy.run_path(str(ROOT / f"stages/{stage}.py"))["main"](name)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
