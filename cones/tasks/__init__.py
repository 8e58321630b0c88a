"""The only door to tasks: what predictions are worth, and how they are shown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from cones.interfaces.protocols import Instances, Predictions
from cones.tasks.classification.measure import classification_metrics, mean_loss, quick_metrics
from cones.tasks.detection.measure import (
    Evaluated,
    coco_results,
    coco_truth,
    compact,
    evaluate_detection,
    quick_detection_metrics,
)
from cones.tasks.generation.measure import denoising_metrics, diversity, likeness, obedience
from cones.visuals.objects import beside, draw_instances
from cones.visuals.sheets import captioned, contact_sheet, picture_rows

__all__ = [
    "TASKS",
    "Evaluated",
    "Task",
    "Truth",
    "beside",
    "captioned",
    "classification_metrics",
    "coco_results",
    "coco_truth",
    "contact_sheet",
    "diversity",
    "draw_instances",
    "evaluate_detection",
    "likeness",
    "mean_loss",
    "obedience",
    "picture_rows",
]


@runtime_checkable
class Truth(Protocol):
    """What pictures show: a class each, or objects in pictures of some sizes (height, width)."""

    labels: Tensor

    @property
    def truths(self) -> Sequence[Instances]: ...

    @property
    def sizes(self) -> Sequence[tuple[int, int]]: ...


Metrics = dict[str, float]
Quick = Callable[[Sequence[Predictions], Truth, Sequence[str]], Metrics]
Full = Callable[[Sequence[Predictions], Truth, Sequence[str]], Evaluated]


@dataclass(frozen=True)
class Task:
    """How predictions of a task are measured against the truth, given the classes: `quick` while searching, `full` at
    its end. `batch` pictures are predicted at once, and kept as `keep` gives them: on the CPU, in little room."""

    quick: Quick
    full: Full
    keep: Callable[[Predictions], Predictions]
    batch: int


def _scores(predictions: Sequence[Predictions]) -> Tensor:
    return torch.cat([p.scores for p in predictions])


def _found(predictions: Sequence[Predictions]) -> list[Instances]:
    return [one for p in predictions for one in p.instances or ()]


def _detection(masks: bool) -> Task:
    def quick(predictions: Sequence[Predictions], truth: Truth, classes: Sequence[str]) -> Metrics:
        return quick_detection_metrics(_found(predictions), truth.truths, truth.sizes, classes, masks)

    def full(predictions: Sequence[Predictions], truth: Truth, classes: Sequence[str]) -> Evaluated:
        return evaluate_detection(_found(predictions), truth.truths, truth.sizes, classes, masks)

    def keep(found: Predictions) -> Predictions:
        return Predictions(found.scores.cpu(), tuple(compact(one, masks) for one in found.instances or ()))

    return Task(quick, full, keep, 16)


TASKS = {
    "classification": Task(
        lambda p, truth, classes: quick_metrics(_scores(p), truth.labels),
        lambda p, truth, classes: Evaluated(classification_metrics(_scores(p), truth.labels)),
        lambda found: Predictions(found.scores.cpu()),
        1024,
    ),
    "detection": _detection(masks=False),
    "segmentation": _detection(masks=True),
    "generation": Task(
        lambda p, truth, classes: denoising_metrics(p),
        lambda p, truth, classes: Evaluated(denoising_metrics(p)),
        lambda found: Predictions(found.scores.cpu()),
        32,
    ),
}
