"""Bring the results of all concepts together: one object a row in `results/summary.json`."""

from cones.config import load_params
from cones.files import read_json, write_json
from cones.layout import EVALUATED, RESULTS, SEARCHED
from cones.process import run_stage


def main() -> None:
    params = load_params()
    summary = []
    for row, run in params.runs.items():
        metrics = read_json(EVALUATED / run.concept / "metrics.json")[row]
        cost = read_json(SEARCHED / run.concept / row / "cost.json")
        about = {"concept": run.concept, "row": row, "method": run.method.name, "finetune": None}
        summary.append({**about, "test": metrics["test"], "val": metrics["val"], "cost": cost})
    write_json(RESULTS / "summary.json", summary)
    print(f"{len(summary)} rows in {RESULTS / 'summary.json'}")


if __name__ == "__main__":
    run_stage(main)
