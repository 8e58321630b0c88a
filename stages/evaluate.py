"""Evaluate a concept: every row's Concept on the test split, which no other stage opens."""

import csv

from cones.config import load_params
from cones.errors import ConesError
from cones.files import fresh_folder, read_json, write_json
from cones.layout import CACHE, EVALUATED, PREPARED, SEARCHED
from cones.process import run_stage


def main(name: str) -> None:
    params = load_params()
    concept, rows = params.entry("concepts", name), params.rows(name)
    stray = sorted(p.name for p in (SEARCHED / name).iterdir() if p.is_dir() and p.name not in rows)
    if stray:
        folder = SEARCHED / name / stray[0]
        raise ConesError(f"{folder} belongs to no row of params.yaml; put the row back, or remove the folder")

    from accelerate import Accelerator

    from cones.data import Split
    from cones.evaluation import evaluate_rows, shown_pictures

    concepts = {row: SEARCHED / name / row / "concept.safetensors" for row in rows}
    found = evaluate_rows(concepts, PREPARED / concept.data / "test", CACHE, Accelerator().device)
    with fresh_folder(EVALUATED / name) as out:
        metrics = {r: {"test": e.metrics, **read_json(SEARCHED / name / r / "metrics.json")} for r, e in found.items()}
        write_json(out / "metrics.json", metrics)
        (out / "rows").mkdir()
        for row, evaluation in found.items():
            with (out / "rows" / f"{row}.csv").open("w", newline="") as file:
                csv.writer(file).writerows([("picture", "actual", "predicted", "score"), *evaluation.predictions])
            evaluation.sheet.save(out / "rows" / f"{row}.jpg", quality=85)
        (out / "pictures").mkdir()
        for index, picture in shown_pictures(Split.open(PREPARED / concept.data / "test")).items():
            picture.save(out / "pictures" / f"{index}.jpg", quality=85)
        best = max(metrics, key=lambda r: (metrics[r]["val"]["accuracy"], -metrics[r]["val"]["loss"]))
        (out / "confusion.csv").write_bytes((out / "rows" / f"{best}.csv").read_bytes())
    for row, scores in metrics.items():
        print(f"{row}: test accuracy {scores['test']['accuracy']:.3f}")


if __name__ == "__main__":
    run_stage(main)
