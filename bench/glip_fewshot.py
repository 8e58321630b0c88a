"""Detection methods with equal learning-rate grids on one data set: validation chooses the rate, test is opened once.

python bench/glip_fewshot.py scenes            the generated novel classes, boxes and masks
python bench/glip_fewshot.py cells FOLDER      blood cells in Pascal VOC's layout (BCCD), boxes
"""

import math
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one seed a core, side by side

from common import WORK, spread, write_results

from cones.config import BackboneConfig, DetectionConcept, FinetuneConfig, RunConfig, SceneData, VocData, parse_method
from cones.data import prepare
from cones.files import content_hash, read_json, write_json
from cones.process import cores

SEEDS = (1, 2, 3)
BATCH = 16
STEPS = {"scenes": 120, "cells": 160}
"""Of each search, in whole epochs; it validates eight times or a little more."""
RATES = (0.01, 0.05, 0.25)
METHODS: dict[str, tuple[dict, tuple]] = {
    "zero_shot": ({"name": "zero_shot"}, (None,)),
    "prompt_tuning": ({"name": "prompt_tuning"}, RATES),
    "prompt_tuning, class-specific": ({"name": "prompt_tuning", "class_specific": True}, RATES),
    "language_prompt": ({"name": "language_prompt"}, RATES),
    "cones, from text": ({"name": "cones"}, RATES),
    "cones, 4 tokens": ({"name": "cones", "n_tokens": 4}, RATES),
    "cones, from noise": ({"name": "cones", "init": "random", "n_tokens": 4}, RATES),
}
FINETUNES = {"full, from the name": "zero_shot", "full, after cones": "cones, from text"}
FINETUNE: dict[str, Any] = {"concept": "bench", "from": "bench", "kind": "full", "steps": 80, "validate_every": 16}
FINETUNE_RATES = (1e-4, 5e-4)
CELLS = {"RBC": "red blood cell", "WBC": "white blood cell", "Platelets": "platelet"}


def one_seed(name: str, shots: int | None, seed: int) -> tuple[str, dict[str, dict]]:
    """Every method at its best learning rate, for one draw of pictures: the split's hash and a line a method.

    A draw that was measured with these settings on this base model is not measured again.
    """
    from accelerate import Accelerator

    from cones.encoding import draw, encode_concept
    from cones.finetuning import finetune_row
    from cones.ranking import headline, rank
    from cones.rows import search_row

    task = "segmentation" if name == "scenes" else "detection"
    work, accelerator = WORK / name / f"{shots}-{seed}", Accelerator()
    concept = DetectionConcept(
        task=task, backbone="glip-tiny", data=name, shots=shots, seed=seed, names=CELLS if name == "cells" else {}
    )
    drawn = draw(concept, WORK / name / "prepared")
    backbone = BackboneConfig(kind="glip", source="models/backbones/glip-tiny")
    encoded = encode_concept("bench", concept, backbone, drawn, work / "encoded", accelerator.device)
    epochs = math.ceil(STEPS[name] / math.ceil(len(encoded.train) / BATCH))
    schedule = {"epochs": epochs, "batch_size": BATCH, "validate_every": max(1, epochs // 8), "patience": None}
    settings_hash = content_hash([METHODS, STEPS, FINETUNES, FINETUNE, FINETUNE_RATES, encoded.base.sha256])
    measured = work / f"{settings_hash[:16]}.json"
    if measured.exists():
        return encoded.about["split_hash"][:12], read_json(measured)
    starts, lines = {}, {}
    for label, (settings, rates) in METHODS.items():
        found = []
        for rate in rates:
            chosen = settings | ({} if rate is None else {"lr": rate, **schedule})
            run = RunConfig(concept="bench", method=parse_method(chosen))
            found.append((search_row("bench", run, encoded, accelerator), rate))
        row, rate = max(found, key=lambda f: rank(task, f[0].metrics))
        starts[label] = row.concept
        lines[label] = _line(row, rate, row.concept, None, work, name)
        print(f"{shots} shots, seed {seed}, {label}: {lines[label]}", flush=True)
    for label, start in FINETUNES.items() if shots else ():
        found = []
        for rate in FINETUNE_RATES:
            settings = FinetuneConfig.model_validate(FINETUNE | {"lr": rate})
            tuned = finetune_row("bench", settings, starts[start], encoded, accelerator, WORK / name / "prepared")
            found.append((tuned, rate))
        tuned, rate = max(found, key=lambda f: rank(task, f[0].metrics))
        lines[label] = _line(tuned, rate, tuned.concept, tuned.weights, work, name)
        lines[label]["curve"] = [(c["step"], round(c[f"val_{headline(task)}"], 4)) for c in tuned.result.curves]
        print(f"{shots} shots, seed {seed}, {label}: {lines[label]}", flush=True)
    write_json(measured, lines)
    return encoded.about["split_hash"][:12], lines


def _line(row: Any, rate: float | None, concept: Any, weights: bytes | None, work: Path, name: str) -> dict[str, Any]:
    """Test and validation metrics of a found row, its rate, and what it cost."""
    from cones.concept import WEIGHTS_FILE
    from cones.evaluation import evaluate_rows

    path = work / "row" / "concept.safetensors"
    concept.save(path)
    if weights is not None:
        path.with_name(WEIGHTS_FILE).write_bytes(weights)
    test = evaluate_rows({"bench": path}, WORK / name / "prepared/test", work / "cache")["bench"].metrics
    return {"test": test, "val": row.metrics, "lr": rate, **row.cost}


def main(name: str, source: str | None = None) -> None:
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
    table: dict[str, dict[str, dict]] = {}
    hashes = {}
    for shots in dict.fromkeys(shots for shots, _ in draws):
        seeds = [seed for s, seed in draws if s == shots]
        found = [line for (s, _), line in zip(draws, lines) if s == shots]
        told = f"{shots} shots" if shots else "all pictures"
        hashes |= {f"{told}, seed {seed}": split for seed, (split, _) in zip(seeds, found)}
        table[told] = {label: _summary([lines[label] for _, lines in found]) for label in found[0][1]}
    write_results(f"glip_fewshot_{name}", {"data": name, "seeds": list(SEEDS), "split_hashes": hashes, "table": table})


def _summary(lines: list[dict]) -> dict[str, Any]:
    names = [m for m in ("box_ap", "box_ap50", "mask_ap", "mask_ap50") if m in lines[0]["test"]]
    found: dict[str, Any] = {f"test_{m}": spread([x["test"][m] for x in lines]) for m in names}
    found |= {f"val_{m}": spread([x["val"][m] for x in lines]) for m in names}
    found |= {
        "lr_chosen": [x["lr"] for x in lines],
        "optimise_seconds": spread([x["optimise_seconds"] for x in lines]),
        "steps_to_best": [x["steps_to_best"] for x in lines],
        "trained_parameters": lines[0]["trained_parameters"],
        "text_encoder_calls": [x["text_encoder_calls"] for x in lines],
    }
    if "curve" in lines[0]:
        found["validation_curves"] = [x["curve"] for x in lines]
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
