"""Using a Concept on new pictures."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from cones.common.errors import ConceptError
from cones.concept.file import Concept
from cones.data.masks import object_mask
from cones.data.pictures import open_picture, rgb
from cones.data.prepared import Object
from cones.interfaces.protocols import Features, Instances
from cones.tasks.detection.measure import coco_results

AT_ONCE = {"classification": 32, "detection": 4, "segmentation": 4}
"""Pictures in a batch, if nothing else is said: a detector's are large, and more at once is no faster on a CPU."""

Given = str | Path | Image.Image
Size = tuple[int, int]


@dataclass(frozen=True)
class Prediction:
    """What one picture shows: the best label, its probability, and that of every class."""

    label: str
    score: float
    scores: dict[str, float]

    def __str__(self) -> str:
        return f"{self.label}  {self.score:.3f}"


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found in one picture, the best first: boxes xyxy in its absolute pixels, scores in [0, 1], class names.

    `size` is the picture's (height, width) as it was opened, `regions` are the objects' masks as the text of COCO's
    compressed run lengths; None where boxes alone are asked for.
    """

    boxes: Float[Tensor, "n 4"]
    scores: Float[Tensor, " n"]
    labels: tuple[str, ...]
    size: Size
    regions: tuple[str, ...] | None = None

    @property
    def masks(self) -> Bool[Tensor, "n h w"] | None:
        """The masks, True where an object is. They are drawn anew each time: as pixels they take much memory."""
        if self.regions is None:
            return None
        found = [torch.from_numpy(self.mask(i)) for i in range(len(self))]
        return torch.stack(found) if found else torch.zeros(0, *self.size, dtype=torch.bool)

    def mask(self, i: int) -> np.ndarray:
        """The mask of one object: bool (h, w)."""
        assert self.regions is not None, "there are no masks"
        x1, y1, x2, y2 = self.boxes[i].tolist()
        return object_mask(Object(-1, (x1, y1, x2, y2), self.regions[i]), self.size)

    def __len__(self) -> int:
        return len(self.labels)

    def __str__(self) -> str:
        found = ", ".join(f"{label} {score:.2f}" for label, score in zip(self.labels[:8], self.scores.tolist()))
        return f"{len(self)} found: {found}{', ...' if len(self) > 8 else ''}" if len(self) else "nothing found"


def classify(concept: Concept, images: Sequence[Given], batch_size: int | None = None) -> list[Prediction]:
    """Classify pictures, given as paths or opened, in their order; `DataError` for one that cannot be read."""
    backbone, at_once = concept.backbone, batch_size or AT_ONCE[concept.card.task]
    text = concept.text.to(backbone.device)
    found: list[Prediction] = []
    for start in range(0, len(images), at_once):
        chunk = [_opened(image) for image in images[start : start + at_once]]
        tensors = backbone.encode(backbone.pixels(chunk))
        features = Features(dict(tensors), torch.zeros(len(chunk), dtype=torch.long))
        for row in backbone.predict(features, text).scores.tolist():
            scores = dict(zip(concept.card.classes, row))
            label = max(scores, key=scores.__getitem__)
            found.append(Prediction(label, scores[label], scores))
    return found


def detect(
    concept: Concept, images: Sequence[Given], batch_size: int | None = None, threshold: float | None = None
) -> list[Detections]:
    """Find objects in pictures, given as paths or opened, in their order.

    A picture given by its path is turned as its EXIF orientation says, an opened one is taken as it is. Boxes below
    `threshold` are left out; None: the Concept's own. What is found in a picture does not depend on the others, but
    for the last digits, which the size of a batch decides.

    Raises:
        ConceptError: the threshold is not in [0, 1].
        DataError: a picture cannot be read.
    """
    card = concept.card
    least = (card.score_threshold or 0.0) if threshold is None else threshold
    if not 0 <= least <= 1:
        raise ConceptError(f"the threshold must be from 0 to 1, got {least:g}")
    backbone = concept.backbone
    text = concept.text.to(backbone.device)
    found: dict[int, Detections] = {}
    for canvas, places, pictures in _batches(images, backbone, card.canvas, batch_size or AT_ONCE[card.task]):
        pixels, geometry = backbone.view(pictures, canvas)
        views = torch.zeros(len(pictures), dtype=torch.long)
        features = Features(dict(backbone.encode(pixels)), views, geometry=geometry)
        for place, picture, one in zip(places, pictures, backbone.predict(features, text, least).instances):
            size = (picture.height, picture.width)
            found[place] = _told(one.to("cpu"), size, card.classes)
    return [found[place] for place in range(len(images))]


def _batches(
    images: Sequence[Given], backbone: Any, least: Size | None, at_once: int
) -> Iterator[tuple[Size, list[int], list[Image.Image]]]:
    """Batches of pictures of one canvas (height, width), with their places: the Concept's, or a larger one where a
    picture needs it. So a picture has the same padding whatever comes with it."""
    waiting: dict[Size, list[tuple[int, Image.Image]]] = defaultdict(list)
    for place, image in enumerate(images):
        picture = _opened(image)
        height, width = backbone.canvas([(picture.height, picture.width)])
        canvas = (height, width) if least is None else (max(height, least[0]), max(width, least[1]))
        waiting[canvas].append((place, picture))
        if len(waiting[canvas]) == at_once:
            places, pictures = zip(*waiting.pop(canvas))
            yield canvas, list(places), list(pictures)
    for canvas, rest in waiting.items():
        places, pictures = zip(*rest)
        yield canvas, list(places), list(pictures)


def _told(found: Instances, size: Size, classes: Sequence[str]) -> Detections:
    assert found.scores is not None, "predictions have scores"
    order = found.scores.argsort(descending=True, stable=True)
    height, width = size
    # Scaling back from the canvas may end a rounding beyond the edge.
    boxes = found.boxes[order].clamp(min=0).minimum(found.boxes.new_tensor([width, height, width, height]))
    labels, scores = found.labels[order], found.scores[order]
    regions = None
    if found.masks is not None:
        told = coco_results([Instances(boxes, labels, found.masks[order], scores)])
        regions = tuple(line["segmentation"]["counts"] for line in told)
    return Detections(boxes, scores, tuple(classes[i] for i in labels.tolist()), size, regions)


def _opened(image: Given) -> Image.Image:
    return rgb(image, "the picture given") if isinstance(image, Image.Image) else open_picture(Path(image))
