"""Detection methods with equal learning-rate grids on one data set: validation chooses the rate, test is opened once.

python bench/glip_fewshot.py scenes            the generated novel classes, boxes and masks
python bench/glip_fewshot.py cells FOLDER      blood cells in Pascal VOC's layout (BCCD), boxes
"""

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one seed a core, side by side

from common import WORK, write_results

from cones.common.process import cores
from cones.readers.prepare import prepare
from cones.readers.voc import VocData
from cones.readers.world import SceneData

SEEDS = (1, 2, 3)
STEPS = {"scenes": 120, "cells": 160}
RATES = {"scenes": (0.005, 0.02, 0.08), "cells": (0.01, 0.05, 0.25)}
"""The same for every method. On scenes 0.25 is left out: ConES is as good there, but not what is tuned after it."""
METHODS: dict[str, dict] = {
    "zero_shot": {"name": "zero_shot"},
    "prompt_tuning": {"name": "prompt_tuning"},
    "prompt_tuning, class-specific": {"name": "prompt_tuning", "class_specific": True},
    "language_prompt": {"name": "language_prompt"},
    "cones, from text": {"name": "cones"},
    "cones, 4 tokens": {"name": "cones", "n_tokens": 4},
    "cones, from noise": {"name": "cones", "init": "random", "n_tokens": 4},
}
STARTS = {"from the name": "zero_shot", "after cones": "cones, from text"}
FINETUNE_STEPS = {"scenes": (32, 80), "cells": (80,)}
CELLS = {"RBC": "red blood cell", "WBC": "white blood cell", "Platelets": "platelet"}
METRICS = ("box_ap", "box_ap50", "mask_ap", "mask_ap50")


def one_seed(name: str, shots: int | None, seed: int) -> tuple[str, dict[str, Path]]:
    """Every method at its best learning rate, for one draw of pictures: the split's hash and a folder a method."""
    from glip_rows import Draw

    from cones.tasks.detection.settings import DetectionConcept

    concept = DetectionConcept(
        task="segmentation" if name == "scenes" else "detection",
        backbone="glip-tiny", data=name, shots=shots, seed=seed, names=CELLS if name == "cells" else {},
    )  # fmt: skip
    drawn = Draw.of(f"{shots} shots, seed {seed}", concept, WORK / name / "prepared", WORK / name / f"{shots}-{seed}")
    folders = {label: drawn.searched(label, of, RATES[name], STEPS[name]) for label, of in METHODS.items()}
    for steps in FINETUNE_STEPS[name] if shots else ():
        for said, start in STARTS.items():
            label = f"full, {steps} steps, {said}"
            folders[label] = drawn.tuned(label, folders[start], steps)
    return drawn.split_hash, folders


def main(name: str, source: str | None = None) -> None:
    from glip_rows import summary

    data = (
        SceneData(kind="scenes", vocabulary="novel", train=200, val=60, test=200)
        if source is None
        else VocData(kind="voc", source=source)
    )
    prepare(data, WORK / name / "prepared")
    draws: list[tuple[int | None, int]] = [(10, seed) for seed in SEEDS]
    draws += [] if name == "scenes" else [(None, SEEDS[0])]  # all pictures are one draw
    with ProcessPoolExecutor(min(len(cores()), len(draws))) as workers:
        lines = list(workers.map(one_seed, [name] * len(draws), *zip(*draws)))
    table: dict[str, dict[str, Any]] = {}
    hashes = {}
    for shots in dict.fromkeys(shots for shots, _ in draws):
        seeds = [seed for s, seed in draws if s == shots]
        found = [line for (s, _), line in zip(draws, lines) if s == shots]
        told = f"{shots} shots" if shots else "all pictures"
        hashes |= {f"{told}, seed {seed}": split for seed, (split, _) in zip(seeds, found)}
        table[told] = {label: summary([of[label] for _, of in found], METRICS) for label in found[0][1]}
    write_results(f"glip_fewshot_{name}", {"data": name, "seeds": list(SEEDS), "split_hashes": hashes, "table": table})


if __name__ == "__main__":
    main(*sys.argv[1:])
