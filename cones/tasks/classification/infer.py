"""Classifying new pictures with a Concept."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cones.concept.file import Concept
from cones.data.pictures import Given, opened_picture
from cones.interfaces.pictures import Features
from cones.tasks.detection.infer import AT_ONCE


@dataclass(frozen=True)
class Prediction:
    """What one picture shows: the best label, its probability, and that of every class."""

    label: str
    score: float
    scores: dict[str, float]

    def __str__(self) -> str:
        return f"{self.label}  {self.score:.3f}"


def classify(concept: Concept, images: Sequence[Given], batch_size: int | None = None) -> list[Prediction]:
    """Classify pictures, given as paths or opened, in their order; `DataError` for one that cannot be read."""
    backbone, at_once = concept.backbone, batch_size or AT_ONCE[concept.card.task]
    text = concept.text.to(backbone.device)
    found: list[Prediction] = []
    for start in range(0, len(images), at_once):
        chunk = [opened_picture(image) for image in images[start : start + at_once]]
        tensors = backbone.encode(backbone.pixels(chunk))
        features = Features(dict(tensors), torch.zeros(len(chunk), dtype=torch.long))
        for row in backbone.predict(features, text).scores.tolist():
            scores = dict(zip(concept.card.classes, row))
            label = max(scores, key=scores.__getitem__)
            found.append(Prediction(label, scores[label], scores))
    return found
