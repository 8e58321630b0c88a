"""The finished rows of the table, read from what the stages left."""

from collections.abc import Iterable
from typing import Any

from cones.config import FinetuneConfig, Params
from cones.files import read_json
from cones.layout import EVALUATED, SEARCHED


def finished_metrics(concept: str, row: str) -> dict[str, Any] | None:
    """A row's test and validation metrics; None if it is not evaluated as it was last searched."""
    searched, evaluated = SEARCHED / concept / row / "metrics.json", EVALUATED / concept / "metrics.json"
    if not (searched.exists() and evaluated.exists()):
        return None
    metrics = read_json(evaluated).get(row)
    return metrics if metrics is not None and metrics["val"] == read_json(searched)["val"] else None


def summarise(params: Params, concepts: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """One object a finished row, in the order of the table; of some concepts only, if they are given."""
    summary = []
    for row, run in params.rows().items():
        if concepts is not None and run.concept not in concepts:
            continue
        metrics = finished_metrics(run.concept, row)
        if metrics is not None:
            kind = run.kind if isinstance(run, FinetuneConfig) else None
            about = {"concept": run.concept, "row": row, "method": params.method_of(row).name, "finetune": kind}
            cost = read_json(SEARCHED / run.concept / row / "cost.json")
            summary.append({**about, "test": metrics["test"], "val": metrics["val"], "cost": cost})
    return summary
