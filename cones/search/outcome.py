"""What a search gives, what it cost, and the files of a row."""

import csv
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from cones.common.files import read_json, write_json
from cones.concept.file import Concept
from cones.features.encoded import Encoded
from cones.tasks.ranking import headline


@dataclass(frozen=True)
class SearchResult:
    """What a search did. The method holds the best parameters when it ends.

    `curves` has a line a validation, the first that of the start; `steps_to_best` counts optimiser steps up to the best
    one. Without validation it has a line an epoch, and the best is the last. `seconds` leaves out pictures that were
    made to be looked at.
    """

    curves: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    steps_to_best: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class FoundRow:
    """What searching a row gives: the Concept, its curves, validation metrics if any, and what it cost."""

    concept: Concept
    result: SearchResult
    metrics: dict[str, float]
    cost: dict[str, float]
    rates: list[dict[str, float]] = field(default_factory=list, kw_only=True)
    """Where validation chose the learning rate: what was tried, best first; see `cones.search.rates.choose_rate`."""


@dataclass(frozen=True)
class SearchedRow(FoundRow):
    """One that a search gives: with the method as it stood at its end, whose prompts may go with other classes."""

    module: nn.Module


def cost_of(encoded: Encoded, result: SearchResult, trained: int, text_encoder_calls: int) -> dict[str, float]:
    """What a row cost: seconds, steps, numbers trained, memory; the pictures are encoded once for all rows."""
    features = read_json(encoded.folder / "cost.json", float, at="feature_seconds")
    return {
        "search_seconds": round(features + result.seconds, 3),
        "feature_seconds": features,
        "optimise_seconds": round(result.seconds, 3),
        "steps": result.steps,
        "steps_to_best": result.steps_to_best,
        "trained_parameters": trained,
        "text_encoder_calls": text_encoder_calls,
        "peak_memory_mb": peak_memory_mb(),
    }


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    packages = ("cones", "torch", "transformers", "diffusers")
    return {"python": platform.python_version(), **{p: version(p) for p in packages}}


def peak_memory_mb() -> float:
    """The most memory this process has held, in MB: of the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def write_row(folder: Path, task: str, found: FoundRow, samples: Path | None = None) -> None:
    """Fill the folder of a row: its Concept, validation metrics, cost and curves, and pictures made on the way.

    A list of the pictures stands beside them, as DVC warns of an output that is an empty folder.
    """
    found.concept.save(folder / "concept.safetensors")
    write_json(folder / "metrics.json", {"val": found.metrics} | ({"rates": found.rates} if found.rates else {}))
    write_json(folder / "cost.json", found.cost)
    write_curves(folder / "curves.csv", task, found.result.curves)
    (folder / "samples").mkdir(exist_ok=True)
    if samples is not None and samples.is_dir():
        shutil.copytree(samples, folder / "samples", dirs_exist_ok=True)
    write_json(folder / "samples/pictures.json", sorted(p.name for p in (folder / "samples").iterdir()))


def write_curves(path: Path, task: str, curves: Sequence[Mapping[str, float]]) -> None:
    """Write the lines of a search as a table; its column `val_score` is the metric that the task is ranked by."""
    head = f"val_{headline(task)}"
    names = dict.fromkeys(name for line in curves for name in line)
    columns = ["epoch", "step", "train_loss", "val_score", *(n for n in names if n.startswith("val_"))]
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows({**line, "val_score": line[head]} for line in curves)
