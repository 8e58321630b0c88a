"""Rows on real data: the left ventricle in MR of five patients, and nuclei in microscopy.

    python bench/medical_real.py path/to/data        which holds sunnybrook and nuclei_dsb2018

Three seeds, each of which divides the patients 3/1/1 (pictures of nuclei likewise) and draws the shots anew. Every
searched method has the same steps and learning rates, and validation chooses; the test is opened once.
"""

import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one seed a core, side by side

import numpy as np
from common import WORK, spread, write_results

from cones.common.files import read_json
from cones.common.process import cores
from cones.data.prepared import SPLITS, VOLUMES, Record, Split, write_split
from cones.data.settings import DataSettings
from cones.readers.masks.settings import MaskData
from cones.readers.prepare import prepare
from cones.readers.volumes.settings import VolumeData
from cones.readers.volumes.writer import write_png

SEEDS = (1, 2, 3)
MIDDLE = [75.0, 75.0, 200.0, 200.0]
"""Of the 330 to 350 mm of a slice, what is kept: the heart is near its middle."""
SIDE = 90.0
"""Millimetres of a patch around the left ventricle."""
TOWARDS_APEX = np.array([-1.0, 1.0, -1.0])
"""Left, front and feet, as NIfTI has them."""
HEART = ("heart, detection", "heart, segmentation")
NUCLEI = "nuclei, segmentation"
SHOTS = 10
STEPS = dict.fromkeys(HEART, (100, 60)) | {NUCLEI: (60, 40)}
"""Of a search and of a full fine-tuning; a picture of nuclei has dozens of them, and takes its time."""
RATES = (0.02, 0.05, 0.1)
NAMES = {HEART[0]: {"left ventricle": "white circle"}, HEART[1]: {"left ventricle": "white circle"},
         NUCLEI: {"nucleus": "white dot"}}  # fmt: skip
"""How a class looks to somebody who knows shapes and shades alone."""
METHODS: dict[str, dict] = {
    "zero_shot": {"name": "zero_shot"},
    "zero_shot, with attributes": {"name": "zero_shot", "names": {}},
    "prompt_tuning": {"name": "prompt_tuning"},
    "cones": {"name": "cones"},
}
METRICS = ("box_ap50", "box_ap10", "mask_ap", "mask_ap50", "sensitivity_at_1fp", "dice", "hd95_mm")
PARTS = {"basal": "large white circle", "mid": "white circle", "apical": "small white circle"}
PARTS_SHOTS, PARTS_RATES = 8, {"coop": (2e-3, 2e-2), "cones": (1e-3, 3e-3)}
PARTS_METHODS: dict[str, dict] = {
    "zero_shot": {"name": "zero_shot"},
    "zero_shot, with attributes": {"name": "zero_shot", "names": PARTS},
    "coop": {"name": "coop"},
    "cones": {"name": "cones", "init": "image"},
}
PARTS_METRICS = ("accuracy", "balanced_accuracy", "auroc")


def data_of(task: str, source: Path, seed: int) -> DataSettings:
    if task == NUCLEI:
        return MaskData(
            kind="masks", source=str(source / "nuclei_dsb2018/stage1_train"), objects="whole", classes=["nucleus"],
            seed=seed,
        )  # fmt: skip
    return VolumeData.model_validate(
        {"kind": "volumes", "source": str(source / "sunnybrook"), "layout": "contours", "window": "percentile",
         "slices": {"axis": "acquired"}, "crop": MIDDLE, "seed": seed}
    )  # fmt: skip


def one_seed(task: str, source: Path, seed: int) -> tuple[str, dict[str, Path]]:
    """Every method at its best rate for one division and draw: the split's hash and a folder a method."""
    from glip_rows import Draw

    from cones.tasks.detection.settings import DetectionConcept

    work = WORK / "medical_real" / f"{task.replace(', ', '-')}-{seed}"
    prepare(data_of(task, source, seed), work / "prepared")
    concept = DetectionConcept.model_validate(
        {"task": task.split(", ")[1], "backbone": "glip-tiny", "data": "real", "shots": SHOTS, "val_shots": None,
         "seed": seed}
    )  # fmt: skip
    drawn = Draw.of(f"{task}, seed {seed}", concept, work / "prepared", work)
    folders, (steps, full_steps) = {}, STEPS[task]
    for label, settings in METHODS.items():
        names = {"names": NAMES[task]} if "names" in settings else {}
        folders[label] = drawn.searched(label, settings | names, RATES, steps)
    folders["full, after cones"] = drawn.tuned("full, after cones", folders["cones"], full_steps)
    return drawn.split_hash, folders


def parts_of(prepared: Path, out: Path) -> None:
    """The thirds of the heart as classes: a patch around the left ventricle of each slice with a contour."""
    for name in SPLITS:
        split, volumes = Split.open(prepared / name), read_json(prepared / name / VOLUMES, dict[str, dict])
        (out / name / "pictures").mkdir(parents=True, exist_ok=True)
        records = [
            replace(patch_of(split, i, volumes, out / name), label=label)
            for volume in volumes
            for i, label in thirds(split.records, volume, volumes[volume])
        ]
        write_split(out / name, tuple(PARTS), records)


def thirds(records: tuple[Record, ...], volume: str, about: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """The pictures of a volume with a contour, from the base to the apex, and the third in which each is."""
    along = np.array(about["affine"])[:3, about["axis"]] @ TOWARDS_APEX
    there = sorted(
        (i for i, r in enumerate(records) if r.volume == volume and r.objects), key=lambda i: records[i].slice or 0
    )
    ordered = there if along > 0 else there[::-1]
    return ((i, len(PARTS) * place // len(ordered)) for place, i in enumerate(ordered))


def patch_of(split: Split, index: int, volumes: Mapping[str, Mapping[str, Any]], folder: Path) -> Record:
    record = split.records[index]
    assert record.objects, "it has a contour"
    assert record.volume, "it is a slice"
    x1, y1, x2, y2 = record.objects[0].box
    half = SIDE / 2 / volumes[record.volume]["pixel"][0]
    middle = (x1 + x2) / 2, (y1 + y2) / 2
    corners = [round(m + sign * half) for sign in (-1, 1) for m in middle]
    picture = np.asarray(split.picture(index).crop(tuple(corners)))
    digest = write_png(picture, folder)
    return Record(record.id, -1, digest, f"pictures/{digest[:16]}.png", group=record.group, volume=record.volume)


def parts_seed(source: Path, seed: int) -> tuple[str, dict[str, dict]]:
    """Every method that tells the thirds apart, at its best rate."""
    from accelerate import Accelerator
    from fewshot import best_of_grid

    from cones.backbones.clip.settings import ClipModel
    from cones.results.evaluate import evaluate_rows
    from cones.tasks.classification.settings import ClassificationConcept
    from cones.tasks.encode import draw, encode_concept

    work, accelerator = WORK / "medical_real" / f"parts-{seed}", Accelerator()
    prepare(data_of(HEART[0], source, seed), work / "slices")
    parts_of(work / "slices", work / "prepared")
    concept = ClassificationConcept(
        task="classification", backbone="clip-tiny", data="real", shots=PARTS_SHOTS, val_shots=None, seed=seed
    )
    backbone = ClipModel(kind="clip", source="models/backbones/clip-tiny")
    encoded = encode_concept(
        "bench", concept, backbone, draw(concept, work / "prepared"), work / "encoded", accelerator.device
    )
    lines = {}
    for label, settings in PARTS_METHODS.items():
        row, rate = best_of_grid(settings, PARTS_RATES.get(settings["name"], (None,)), encoded, accelerator)
        path = work / "concept.safetensors"
        row.concept.save(path)
        test = evaluate_rows({"bench": path}, work / "prepared/test", work / "cache")["bench"].metrics
        lines[label] = {"lr": rate, **row.cost, **{f"test_{m}": test[m] for m in PARTS_METRICS}}
        print(f"heart, thirds, seed {seed}, {label}: {lines[label]}", flush=True)
    return str(encoded.about["split_hash"])[:12], lines


def parts_table(lines: list[dict[str, dict]]) -> dict[str, dict]:
    table: dict[str, dict] = defaultdict(dict)
    for label, first in lines[0].items():
        of = [line[label] for line in lines]
        told = [*(f"test_{m}" for m in PARTS_METRICS), "optimise_seconds"]
        table[label] = {m: spread([one[m] for one in of]) for m in told}
        table[label] |= {"trained_parameters": first["trained_parameters"], "lr_chosen": [one["lr"] for one in of]}
    return dict(table)


def main(source: Path) -> None:
    from glip_rows import summary

    tables, hashes = {}, {}
    with ProcessPoolExecutor(len(cores())) as workers:
        runs = {task: [workers.submit(one_seed, task, source, seed) for seed in SEEDS] for task in (*HEART, NUCLEI)}
        parts = [workers.submit(parts_seed, source, seed) for seed in SEEDS]
        for task, futures in runs.items():
            found = [future.result() for future in futures]
            hashes[task] = [of for of, _ in found]
            tables[task] = {label: summary([of[label] for _, of in found], METRICS) for label in found[0][1]}
        thirds_of = [future.result() for future in parts]
    hashes["heart, thirds"] = [of for of, _ in thirds_of]
    tables = {"heart, thirds": parts_table([of for _, of in thirds_of]), **tables}
    about = {"seeds": list(SEEDS), "shots": SHOTS, "shots_of_thirds": PARTS_SHOTS, "split_hashes": hashes}
    write_results("medical_real", {"what": "MR of five patients, and nuclei", **about, "tables": tables})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
