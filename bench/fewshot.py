"""Every method with equal learning-rate grids on one data set: validation chooses the rate, test is opened once.

python bench/fewshot.py glyphs                 the generated novel classes
python bench/fewshot.py cells FOLDER           a folder of class folders
"""

import sys
import time

from accelerate import Accelerator
from common import WORK, spread, write_results

from cones.backbones.clip.settings import ClipModel
from cones.config.params import parse_method
from cones.config.tables import RunConfig
from cones.readers.folder import FolderData
from cones.readers.prepare import prepare
from cones.readers.world import WorldData
from cones.results.evaluate import evaluate_rows
from cones.search.outcome import FoundRow
from cones.search.row import search_row
from cones.tasks.classification.settings import ClassificationConcept
from cones.tasks.encode import draw, encode_concept

SEEDS = (1, 2, 3)
COOP_EPOCHS = {1: 50, 2: 100, 4: 100, 8: 200, 16: 200}
"""As CoOp was published, by shots."""
METHODS = {
    "zero_shot": ({"name": "zero_shot"}, (None,)),
    "coop": ({"name": "coop"}, (2e-3, 2e-2, 1e-1)),
    "coop, class-specific": ({"name": "coop", "class_specific": True}, (2e-3, 2e-2, 1e-1)),
    "cones, from text": ({"name": "cones", "init": "text"}, (3e-4, 1e-3, 3e-3)),
    "cones, from images": ({"name": "cones", "init": "image"}, (3e-4, 1e-3, 3e-3)),
    "cones, from a blend": ({"name": "cones", "init": "blend"}, (3e-4, 1e-3, 3e-3)),
    "cones, from noise": ({"name": "cones", "init": "random"}, (3e-4, 1e-3, 3e-3)),
}


def best_of_grid(settings: dict, rates: tuple, encoded, accelerator) -> tuple[FoundRow, float | None]:
    """The row whose learning rate is best on validation."""
    found = []
    for rate in rates:
        method = parse_method(settings | ({} if rate is None else {"lr": rate}))
        found.append((search_row("bench", RunConfig(concept="bench", method=method), encoded, accelerator), rate))
    return max(found, key=lambda f: (f[0].metrics["accuracy"], -f[0].metrics["loss"]))


def main(name: str, source: str | None = None) -> None:
    data = WorldData(kind="world", vocabulary="novel") if source is None else FolderData(kind="folder", source=source)
    names = {"RBC": "red blood cell", "WBC": "white blood cell", "Platelets": "platelet"} if name == "cells" else {}
    accelerator = Accelerator()
    prepare(data, WORK / name / "prepared")
    shots = [1, 2, 4, 8, 16] if name == "glyphs" else [16]
    table: dict[str, dict[str, dict]] = {}
    split_hashes = {}
    for k in shots:
        collected: dict[str, list[dict]] = {}
        for seed in SEEDS:
            concept = ClassificationConcept(
                task="classification", backbone="clip-tiny", data=name, shots=k, val_shots=None, seed=seed, names=names
            )
            drawn = draw(concept, WORK / name / "prepared")
            backbone = ClipModel(kind="clip", source="models/backbones/clip-tiny")
            encoded = encode_concept("bench", concept, backbone, drawn, WORK / name / "encoded", accelerator.device)
            split_hashes[f"{k} shots, seed {seed}"] = encoded.about["split_hash"][:12]
            for label, (settings, rates) in METHODS.items():
                if label not in ("zero_shot", "coop", "cones, from text") and k != 16:
                    continue
                began = time.perf_counter()
                epochs = {"epochs": COOP_EPOCHS[k]} if settings["name"] == "coop" else {}
                row, rate = best_of_grid(settings | epochs, rates, encoded, accelerator)
                path = WORK / name / "concept.safetensors"
                row.concept.save(path)
                test = evaluate_rows({"bench": path}, WORK / name / "prepared/test", WORK / name / "cache")["bench"]
                line = {"test": test.metrics["accuracy"], "val": row.metrics["accuracy"], "lr": rate, **row.cost}
                collected.setdefault(label, []).append(line)
                print(f"{k} shots, seed {seed}, {label}: {line} ({time.perf_counter() - began:.0f} s)", flush=True)
        for label, lines in collected.items():
            table.setdefault(f"{k} shots", {})[label] = {
                "test_accuracy": spread([x["test"] for x in lines]),
                "val_accuracy": spread([x["val"] for x in lines]),
                "lr_chosen": [x["lr"] for x in lines],
                "optimise_seconds": spread([x["optimise_seconds"] for x in lines]),
                "trained_parameters": lines[0]["trained_parameters"],
                "text_encoder_calls": [x["text_encoder_calls"] for x in lines],
            }
    write_results(f"fewshot_{name}", {"data": name, "seeds": list(SEEDS), "split_hashes": split_hashes, "table": table})


if __name__ == "__main__":
    main(*sys.argv[1:])
