"""Encoding a concept of classification."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cones.features.draw import Drawn
from cones.features.text import Told, text_tensors
from cones.features.views import encode_split
from cones.tasks.classification.settings import ClassificationConcept


def encode_classes(
    concept: ClassificationConcept, backbone: Any, drawn: Drawn, out: Path, on_batch: Callable[[int], None]
) -> Told:
    crops = (concept.views, concept.min_crop, concept.seed)
    encode_split(backbone, drawn.train, drawn.shown, *crops, out / "train", on_batch)
    encode_split(backbone, drawn.val, drawn.held, 1, 1.0, concept.seed, out / "val", on_batch)
    templates = list(concept.templates or drawn.train.templates or ("a photo of a {}.",))
    return {"logit_scale": backbone.logit_scale}, templates, text_tensors(backbone, drawn.names, templates)
