"""Classifying new pictures with a Concept."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cones.common.errors import ConceptError
from cones.common.files import written_path
from cones.concept.card import ConceptCard
from cones.concept.file import Concept
from cones.data.pictures import Given, opened_picture
from cones.interfaces.pictures import Features
from cones.interfaces.protocols import DualEncoder
from cones.interfaces.texts import TextEmbeds
from cones.tasks.texts import at_once, texts_of
from cones.visuals.sheets import captioned

AT_ONCE = 32
"""Pictures in a batch, if nothing else is said."""
COLUMNS = ({"path": "string"}, {"path": "string", "label": "string", "score": "double"})
"""What a registered model takes and gives: a picture a line, and what it shows."""


@dataclass(frozen=True)
class Prediction:
    """What one picture shows: the best label, its probability, and that of every class."""

    label: str
    score: float
    scores: dict[str, float]

    def __str__(self) -> str:
        return f"{self.label}  {self.score:.3f}"


def refuse_predicting(card: ConceptCard, threshold: float | None) -> None:
    """`ConceptError` for a threshold, which whole pictures have none of."""
    if threshold is not None:
        raise ConceptError(f"`{card.concept}` classifies whole pictures; a threshold is for boxes: leave it out")


@torch.no_grad()
def predict(
    concept: Concept,
    backbone: DualEncoder,
    images: Sequence[Given],
    batch_size: int | None = None,
    threshold: float | None = None,
) -> list[Prediction]:
    """Classify pictures, given as paths or opened, in their order; `DataError` for one that cannot be read.

    The text encoder runs where the Concept gives each picture a text of its own, once for each picture and class.
    """
    text, prompts = texts_of(concept, backbone), concept.visual_tokens
    together = at_once(batch_size or AT_ONCE, len(concept.card.classes), concept.card.needs_text_encoder)
    predictions: list[Prediction] = []
    for start in range(0, len(images), together):
        chunk = [opened_picture(image) for image in images[start : start + together]]
        with torch.inference_mode():
            tensors = backbone.encode(backbone.pixels(chunk), prompts)
        features = Features(dict(tensors), torch.zeros(len(chunk), dtype=torch.long))
        told = text if isinstance(text, TextEmbeds) else text(features)
        for row in backbone.predict(features, told).scores.tolist():
            scores = dict(zip(concept.card.classes, row))
            label = max(scores, key=scores.__getitem__)
            predictions.append(Prediction(label, scores[label], scores))
    return predictions


def content(
    about: Mapping[str, Any],
    card: ConceptCard,
    paths: Sequence[Path],
    predictions: Sequence[Prediction],
    drawn: Sequence[Mapping[str, str]],
    threshold: float | None,
) -> dict[str, Any]:
    """What `predictions.json` holds; `drawn` names the drawn picture of each."""
    lines = [{"path": written_path(path), **asdict(p), **d} for path, p, d in zip(paths, predictions, drawn)]
    return {**about, "predictions": lines}


def drawn_picture(picture: Image.Image, prediction: Prediction, classes: Sequence[str]) -> Image.Image:
    """A picture with what it shows under it."""
    return captioned(picture, f"{prediction.label}  {prediction.score:.2f}")


def lines(path: str, prediction: Prediction) -> Iterator[tuple]:
    """The lines of a table with `COLUMNS` for one picture."""
    yield path, prediction.label, prediction.score
