"""What a finished row leaves in its MLflow run: figures, curves, pictures, and the Concept as a model."""

import contextlib
import csv
import io
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cones
from cones.common.errors import OutOfDate
from cones.common.files import read_json, reading
from cones.common.layout import EVALUATED
from cones.concept.card import ConceptCard
from cones.concept.file import WEIGHTS_FILE, Concept
from cones.data.pictures import open_picture
from cones.registry.signature import signature_of
from cones.registry.versions import content_key
from cones.registry.wheel import requirements, write_wheel

BATCH = 900
"""Metrics that are logged at once; MLflow takes a thousand things."""


@dataclass(frozen=True)
class FinishedRow:
    """A row that is searched and evaluated: where its files are, and its content's `key`."""

    name: str
    """Of its concept."""
    row: str
    task: str
    folder: Path
    concept: Concept
    metrics: dict[str, Any]
    key: str
    """Of `concept` and `metrics`, whatever becomes of the files."""
    description: str | None = None
    """In Markdown, of the version."""

    def refuse_change(self) -> None:
        """`OutOfDate` if its Concept file is another one than at first."""
        if content_key(self.folder, self.metrics) != self.key:
            raise OutOfDate(f"{self.folder / 'concept.safetensors'} was searched again while it was being registered")


def origin_of(card: ConceptCard) -> dict[str, str]:
    """Tags that say what a Concept comes from."""
    return {
        "cones.split_hash": card.split_hash,
        "cones.base": card.base.name,
        "cones.base_hash": card.base.sha256,
        "cones.git_commit": git_commit(),
    }


def log_metrics(client: Any, identity: str, metrics: Sequence[Any]) -> None:
    """Log any number of metrics in a run, as many at once as MLflow takes."""
    for start in range(0, len(metrics), BATCH):
        client.log_batch(identity, metrics=metrics[start : start + BATCH])


def git_commit() -> str:
    """The commit that is checked out here, or `unknown`."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def log_results(client: Any, identity: str, row: FinishedRow) -> None:
    """Settings, metrics, cost, curves and pictures of a row, into its run."""
    from mlflow.entities import Metric, Param, RunTag

    card, folder = row.concept.card, row.folder
    scores = {f"{split}.{k}": v for split, of in row.metrics.items() for k, v in of.items()}
    scores |= {f"cost.{k}": v for k, v in read_json(folder / "cost.json", dict[str, float]).items()}
    curves = [Metric(k, v, 0, step) for step, k, v in _curves(folder / "curves.csv")]
    log_metrics(client, identity, curves)
    client.log_batch(
        identity,
        metrics=[Metric(k, float(v), 0, 0) for k, v in scores.items()],
        params=[Param(k, str(v)) for k, v in _knobs(card).items()],
        tags=[RunTag("cones.method", card.method["name"])],
    )
    for path in sorted(p for p in (EVALUATED / row.name / "rows").glob("*") if p.stem == row.row):
        client.log_artifact(identity, str(path), "test")
    client.log_artifact(identity, str(folder / "curves.csv"))
    for path in sorted((folder / "samples").glob("*.jpg")):
        client.log_image(identity, open_picture(path), key="samples", step=int(path.stem))


def _knobs(card: ConceptCard) -> dict[str, Any]:
    knobs = {"concept": card.concept, "shots": card.shots, "seed": card.seed}
    knobs |= {f"method.{k}": v for k, v in card.method.items()}
    knobs |= {"processes": card.processes} if card.processes > 1 else {}
    return knobs | {f"finetune.{k}": v for k, v in (card.finetune or {}).items()}


def _curves(path: Path) -> list[tuple[int, str, float]]:
    with reading(path), path.open(newline="", encoding="utf-8") as file:
        return [
            (int(r["step"]), f"curve.{k}", float(r[k]))
            for r in csv.DictReader(file)
            for k in r
            if k not in ("epoch", "step") and r[k] != ""
        ]


def log_model(row: FinishedRow) -> str:
    """Log a Concept, after a fine-tuning with its weights, as a model that brings this project's code along; its URI.

    That code is for `mlflow models serve` and `mlflow.pyfunc.load_model`, which run whatever stands in a version;
    nothing of ours does.

    MLflow looks for a requirement that is a path in the model's own folder.
    """
    import mlflow

    files = {"concept": str(row.folder / "concept.safetensors")}
    if row.concept.card.weights_sha256 is not None:
        files["weights"] = str(row.folder / WEIGHTS_FILE)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):  # advice, each time
        wheel = write_wheel(Path(folder))
        return mlflow.pyfunc.log_model(
            name=row.name,
            python_model=str(Path(cones.__file__).parent / "registry/pyfunc.py"),
            artifacts=files,
            code_paths=[str(wheel)],
            pip_requirements=requirements(f"code/{wheel.name}", row.concept.card.base.kind),
            signature=signature_of(row.concept.card.task),
        ).model_uri
