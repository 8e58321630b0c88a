"""Using a Concept on new pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from cones.backbones import open_backbone
from cones.concept import Concept
from cones.data import open_picture
from cones.types import Features


@dataclass(frozen=True)
class Prediction:
    """What one picture shows: the best label, its probability, and that of every class."""

    label: str
    score: float
    scores: dict[str, float]


def classify(concept: Concept, images: Sequence[str | Path | Image.Image], batch_size: int = 32) -> list[Prediction]:
    """Classify pictures, given as paths or opened, in their order; `DataError` for one that cannot be read."""
    backbone = open_backbone(concept.card.base.kind, concept.locate_base())
    found: list[Prediction] = []
    for start in range(0, len(images), batch_size):
        chunk = [_opened(image) for image in images[start : start + batch_size]]
        tensors = backbone.encode(backbone.pixels(chunk))
        features = Features(dict(tensors), torch.zeros(len(chunk), dtype=torch.long))
        for row in backbone.predict(features, concept.text).scores.tolist():
            scores = dict(zip(concept.card.classes, row))
            label = max(scores, key=scores.__getitem__)
            found.append(Prediction(label, scores[label], scores))
    return found


def _opened(image: str | Path | Image.Image) -> Image.Image:
    return image.convert("RGB") if isinstance(image, Image.Image) else open_picture(Path(image))
