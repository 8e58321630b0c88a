"""The tasks by their names."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cones.interfaces.pictures import Instances, Predictions
from cones.tasks.classification.measure import classification_metrics, quick_metrics
from cones.tasks.detection.measure import compact, evaluate_detection, quick_detection_metrics
from cones.tasks.generation.measure import denoising_metrics
from cones.tasks.task import Evaluated, Metrics, Task, Truth


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
