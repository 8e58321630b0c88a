"""Detection methods with equal learning-rate grids on one data set: validation chooses the rate, test is opened once.

python bench/glip_fewshot.py scenes            the generated novel classes, boxes and masks
python bench/glip_fewshot.py cells FOLDER      blood cells in Pascal VOC's layout (BCCD), boxes
"""

import math
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one seed a core, side by side

from common import WORK, spread, write_results

from cones.backbones.glip.settings import GlipModel
from cones.common.files import content_hash, read_json, write_json
from cones.common.process import cores
from cones.config.params import parse_finetune, parse_method
from cones.config.tables import RunConfig
from cones.inference.open import load
from cones.readers.prepare import prepare
from cones.readers.voc import VocData
from cones.readers.world import SceneData
from cones.tasks.detection.settings import DetectionConcept

SEEDS = (1, 2, 3)
BATCH = 16
STEPS = {"scenes": 120, "cells": 160}
"""Of each search, in whole epochs; it validates eight times or a little more."""
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
FINETUNE: dict[str, Any] = {"concept": "bench", "from": "bench", "kind": "full", "validate_every": 16}
FINETUNE_RATES = (5e-4, 1.2e-3)
CONCEPT_FILE = "concept.safetensors"
CELLS = {"RBC": "red blood cell", "WBC": "white blood cell", "Platelets": "platelet"}


def one_seed(name: str, shots: int | None, seed: int) -> tuple[str, dict[str, dict]]:
    """Every method at its best learning rate, for one draw of pictures: the split's hash and a line a method.

    A line that was measured with these settings on these pictures and this base model is not measured again.
    """
    from accelerate import Accelerator

    from cones.concept.file import Concept
    from cones.finetuning.grounding import finetune_row
    from cones.search.row import search_row
    from cones.tasks.encode import draw, encode_concept

    task = "segmentation" if name == "scenes" else "detection"
    work, accelerator = WORK / name / f"{shots}-{seed}", Accelerator()
    concept = DetectionConcept(
        task=task, backbone="glip-tiny", data=name, shots=shots, seed=seed, names=CELLS if name == "cells" else {}
    )
    drawn = draw(concept, WORK / name / "prepared")
    backbone = GlipModel(kind="glip", source="models/backbones/glip-tiny")
    encoded = encode_concept("bench", concept, backbone, drawn, work / "encoded", accelerator.device)
    epochs = math.ceil(STEPS[name] / math.ceil(len(encoded.train) / BATCH))
    schedule = {"epochs": epochs, "batch_size": BATCH, "validate_every": max(1, epochs // 8), "patience": None}
    on = [encoded.about["split_hash"], encoded.base.sha256]

    def line_of(label: str, facts: list, rates: tuple, found_at: Callable[[float | None], Any]) -> Path:
        """The folder of a row at the rate that validation chooses; its figures are in line.json there."""
        out = work / "rows" / content_hash([*on, *facts, rates])[:16]
        if not (out / "line.json").exists():
            found = [(found_at(rate), rate) for rate in rates]
            write_json(out / "line.json", _line(task, found, out, WORK / name / "prepared/test", work / "cache"))
        print(f"{shots} shots, seed {seed}, {label}: {read_json(out / 'line.json')}", flush=True)
        return out

    folders = {}
    for label, settings in METHODS.items():
        rates = (None,) if settings["name"] == "zero_shot" else RATES[name]

        def searched(rate: float | None, settings: dict = settings) -> Any:
            chosen = settings | ({} if rate is None else {"lr": rate, **schedule})
            return search_row("bench", RunConfig(concept="bench", method=parse_method(chosen)), encoded, accelerator)

        folders[label] = line_of(label, [settings, schedule], rates, searched)
    finetunes = [(steps, said) for steps in FINETUNE_STEPS[name] for said in STARTS] if shots else []
    for steps, said in finetunes:
        label, start = f"full, {steps} steps, {said}", STARTS[said]
        first, asked = load(folders[start] / CONCEPT_FILE), FINETUNE | {"steps": steps}

        def tuned(rate: float | None, first: Concept = first, asked: dict = asked) -> Any:
            chosen = parse_finetune(asked | {"lr": rate})
            return finetune_row("bench", chosen, first, encoded, accelerator, WORK / name / "prepared")

        facts = [folders[start].name, parse_finetune(asked).model_dump()]
        folders[label] = line_of(label, facts, FINETUNE_RATES, tuned)
    lines = {label: read_json(out / "line.json") for label, out in folders.items()}
    return encoded.about["split_hash"][:12], lines


def _line(task: str, found: list, out: Path, test: Path, cache: Path) -> dict[str, Any]:
    """Test and validation metrics of the row that validation chooses, its rate, its cost, and a fine-tuning's curve."""
    from cones.concept.file import WEIGHTS_FILE
    from cones.finetuning.tuned import FinetunedRow
    from cones.results.evaluate import evaluate_rows
    from cones.tasks.ranking import headline, rank

    row, rate = max(found, key=lambda f: rank(task, f[0].metrics))
    row.concept.save(out / CONCEPT_FILE)
    more = {}
    if isinstance(row, FinetunedRow):
        (out / WEIGHTS_FILE).write_bytes(row.weights)
        more["curve"] = [(c["step"], round(c[f"val_{headline(task)}"], 4)) for c in row.result.curves]
    metrics = evaluate_rows({"bench": out / CONCEPT_FILE}, test, cache)["bench"].metrics
    return {"test": metrics, "val": row.metrics, "lr": rate, **row.cost, **more}


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
