"""UPT's analysis (arXiv 2210.07225, section 3) on generated data sets of known variances: what prompts gain over
zero-shot, beside the within-class visual and the between-class text variance of each data set.

    python bench/upt_analysis.py [FOLDER]      FOLDER holds what it makes; it goes on after its last cell

The data sets lie on a grid of both knobs, each with words and pictures of its own seed. Each method has one rate for
all of them, the best of `RATES` by validation accuracy on one draw of another data set, as hard as the grid's.
"""

import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from common import WORK, spread, write_results
from upt_advice import advice, leave_one_out
from upt_relations import draw_figure, relations

from cones.common.files import content_hash
from cones.config.params import parse_params
from cones.config.plan import compile_plan
from cones.methods.fitted import features_of, mean_views
from cones.readers.prepare import prepare
from cones.study.cells import Cell, Line, run_cells
from cones.study.pictures import StudyPictures, encode_study
from cones.tasks.classification.variance import text_variance, visual_variance

SHOTS, SEEDS, VIEWS = 8, 3, 4
SHORT = {"epochs": 20, "validate_every": 5}
"""Of the methods that run an encoder at each step; the others are as published."""
VARIETIES = (0.1, 0.35, 1.0)
DIFFER = (("texture",), ("shape",), ("colour", "texture"), ("colour", "texture", "shape"))
"""By the text variance that they make, from the least."""
WORLD = {"kind": "world", "vocabulary": "base", "contrast": 0.25, "train": 24, "val": 16, "test": 60}
"""Pictures so faint that zero-shot does not tell them all apart: in each data set there is something to gain."""
GRID = {
    f"{'-'.join(differ)}-{100 * variety:.0f}{copy}": WORLD | {"differ": list(differ), "variety": variety, "seed": seed}
    for seed, (copy, variety, differ) in enumerate(product(("", "-again"), VARIETIES, DIFFER))
}
PILOT = {"pilot": WORLD | {"differ": ["shape"], "variety": 1.0, "seed": 100, "test": 10}}
STEPS = (0.2, 1, 5)
"""Rates are these times a middle one, which is where short searches of the built-in base model learn something."""
MIDDLES = {"coop": 2e-3, "vpt_shallow": 0.1, "vpt_deep": 0.1, "upt": 0.1, "cones": 1e-3, "taskres": 1e-3,
           "tip_adapter_f": 1e-3}  # fmt: skip
RATES = {name: [round(middle * step, 8) for step in STEPS] for name, middle in MIDDLES.items()}
OWN = dict.fromkeys(("coop", "vpt_shallow", "vpt_deep", "upt"), SHORT)
UNRATED = ("zero_shot", "linear_probe", "lp_plus_plus")
"""Methods without a rate."""


def run_study(
    data: Mapping[str, Any],
    methods: Mapping[str, Any],
    folder: Path,
    accelerator: Accelerator,
    seeds: int = SEEDS,
    validated: int = SHOTS,
) -> tuple[list[Line], StudyPictures]:
    """The lines of a study of some methods on one data set, which is prepared if it is not, and its pictures."""
    (name,) = data
    study = {"data": name, "backbone": "clip-tiny", "shots": [SHOTS], "seeds": seeds, "val_shots": validated,
             "views": VIEWS, "methods": methods}  # fmt: skip
    base = {"kind": "clip", "source": "models/backbones/clip-tiny"}
    tables = {"concepts": {}, "runs": {}, "finetunes": {}, "studies": {name: study}}
    params = parse_params({"backbones": {"clip-tiny": base}, "data": dict(data), **tables})
    plans, study = compile_plan(params), params.studies[name]
    made = plans["prepare", name]
    prepared = folder / f"{name}-{content_hash([made.settings, made.code])[:8]}"
    if not prepared.exists():
        prepare(params.data[name], prepared)
    config, device = params.backbones["clip-tiny"], accelerator.device
    pictures = encode_study(study.draws, config, prepared, folder / "cache", device, lambda done: None)
    code = plans["study", name].settings["code"]
    cells = [
        Cell(label, method, SHOTS, seed, code[label])
        for seed in range(1, seeds + 1)
        for label, method in study.methods.items()
    ]
    lines = run_cells(cells, pictures, accelerator, folder / f"{name}.csv", lambda done, note: print(f"{name}: {note}"))
    return lines, pictures


def values(lines: Sequence[Line], label: str, of: str) -> list[float]:
    return [float(line[of]) for line in lines if line["method"] == label]


def label_of(name: str, i: int) -> str:
    """What a method is called in the pilot's study at the `i`-th of its rates."""
    return f"{name}-{i}"


def choose_rates(folder: Path, accelerator: Accelerator) -> dict[str, Any]:
    """For each method its rates' validation accuracy on the pilot, and the best; the lowest of equals."""
    methods = {
        label_of(name, i): {"name": name, "lr": rate, **OWN.get(name, {})}
        for name, rates in RATES.items()
        for i, rate in enumerate(rates)
    }
    lines, _ = run_study(PILOT, methods, folder, accelerator, seeds=1, validated=PILOT["pilot"]["val"])
    found = {}
    for name, rates in RATES.items():
        tried = {rate: values(lines, label_of(name, i), "val_accuracy")[0] for i, rate in enumerate(rates)}
        found[name] = {"val_accuracy": tried, "lr": max(tried, key=tried.__getitem__)}
    return found


def measure(name: str, methods: Mapping[str, Any], folder: Path, accelerator: Accelerator) -> dict[str, Any]:
    """One data set: its variances, the test accuracy of each method, and what prompts gain."""
    lines, pictures = run_study({name: GRID[name]}, methods, folder, accelerator)
    test, text = features_of(pictures.targets["accuracy"].features), pictures.every.text.embeds[0]
    accuracy = {label: spread(values(lines, label, "accuracy")) for label in methods}
    shown = [mean_views(pictures.cell(SHOTS, seed).train) for seed in range(1, SEEDS + 1)]
    alone = [leave_one_out(*of, text, pictures.every.about["logit_scale"]) for of in shown]
    return {
        "classes": pictures.every.about["classes"],
        "variety": GRID[name]["variety"],
        "differ": GRID[name]["differ"],
        "apart": DIFFER.index(tuple(GRID[name]["differ"])),
        "visual_variance": round(visual_variance(*test), 4),
        "text_variance": round(text_variance(text), 4),
        "of_training": {
            "visual_variance": round(sum(visual_variance(*of) for of in shown) / SEEDS, 4),
            **{rule: round(sum(of[rule] for of in alone) / SEEDS, 4) for rule in alone[0]},
        },
        "test_accuracy": accuracy,
        "gain": {
            label: round(accuracy[label]["mean"] - accuracy["zero_shot"]["mean"], 4)
            for label in methods if label != "zero_shot"
        },
        "split_hashes": list(dict.fromkeys(line["split_hash"] for line in lines)),
    }  # fmt: skip


def main(folder: Path) -> None:
    accelerator = Accelerator()
    rates = choose_rates(folder, accelerator)
    methods: dict[str, Any] = {name: {"name": name} for name in UNRATED}
    methods |= {name: {"name": name, "lr": of["lr"], **OWN.get(name, {})} for name, of in rates.items()}
    sets: dict[str, Any] = {}
    for name in sorted(GRID, key=lambda name: (name.endswith("-again"), GRID[name]["seed"] * 5 % 12)):  # soon spread
        sets[name] = measure(name, methods, folder, accelerator)
        about = {"shots": SHOTS, "seeds": SEEDS, "methods": methods, "rates": rates}
        about |= {"data_sets": {"done": len(sets), "of": len(GRID)}}
        found = {"relations": relations(sets), "advice": advice(sets)} if len(sets) > 3 else {}
        write_results("upt_analysis", {**about, **found, "sets": sets})
    draw_figure(sets)
    for line in found["relations"]["reading"]:
        print(line)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else WORK / "upt_analysis")
