"""Finding objects in new pictures with a Concept."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from cones.common.errors import ConceptError
from cones.common.files import written_path
from cones.concept.card import ConceptCard
from cones.concept.file import Concept
from cones.data.masks import object_mask
from cones.data.pictures import Given, opened_picture
from cones.data.prepared import Object
from cones.interfaces.pictures import Features, Instances
from cones.interfaces.protocols import Grounding
from cones.tasks.detection.measure import coco_results
from cones.visuals.objects import draw_instances

AT_ONCE = 4
"""Pictures in a batch, if nothing else is said: a detector's are large, and more at once is no faster on a CPU."""
COLUMNS = (
    {"path": "string"},
    {"path": "string", "label": "string", "score": "double"}
    | dict.fromkeys(("x1", "y1", "x2", "y2"), "double")
    | {"height": "long", "width": "long", "mask": "string"},
)
"""What a registered model takes and gives: a picture a line, and a line for each box."""

Size = tuple[int, int]


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


def refuse_predicting(card: ConceptCard, threshold: float | None) -> None:
    """Nothing is refused: a threshold is looked at where boxes are found."""


def predict(
    concept: Concept,
    backbone: Grounding,
    images: Sequence[Given],
    batch_size: int | None = None,
    threshold: float | None = None,
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
    text = concept.text.to(backbone.device)
    found: dict[int, Detections] = {}
    for canvas, places, pictures in _batches(images, backbone, card.canvas, batch_size or AT_ONCE):
        pixels, geometry = backbone.view(pictures, canvas)
        views = torch.zeros(len(pictures), dtype=torch.long)
        features = Features(dict(backbone.encode(pixels)), views, geometry=geometry)
        for place, picture, one in zip(places, pictures, backbone.predict(features, text, least).instances or ()):
            size = (picture.height, picture.width)
            found[place] = _told(one.to("cpu"), size, card.classes)
    return [found[place] for place in range(len(images))]


def _batches(
    images: Sequence[Given], backbone: Grounding, least: Size | None, at_once: int
) -> Iterator[tuple[Size, list[int], list[Image.Image]]]:
    """Batches of pictures of one canvas (height, width), with their places: the Concept's, or a larger one where a
    picture needs it. So a picture has the same padding whatever comes with it."""
    waiting: dict[Size, list[tuple[int, Image.Image]]] = defaultdict(list)
    for place, image in enumerate(images):
        picture = opened_picture(image)
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


def coco_dataset(paths: Sequence[Path], found: Sequence[Detections], classes: Sequence[str]) -> dict[str, Any]:
    """What was found in pictures as a COCO data set whose annotations have scores; a picture's path is its file name.

    Boxes are xywh in hundredths of a pixel, masks compressed run lengths; the area is the mask's where there is one.
    """
    annotations: list[dict[str, Any]] = []
    images = []
    for image, (path, one) in enumerate(zip(paths, found), 1):
        images.append({"id": image, "file_name": written_path(path), "height": one.size[0], "width": one.size[1]})
        for i in range(len(one)):
            # COCO's tools take an id of 0 for none.
            about = {"id": len(annotations) + 1, "image_id": image, "category_id": classes.index(one.labels[i]) + 1}
            annotations.append(about | _annotation(one, i))
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, 1)]
    return {"images": images, "categories": categories, "annotations": annotations}


def _annotation(found: Detections, i: int) -> dict[str, Any]:
    """One object as COCO has it, but for what it belongs to."""
    x1, y1, x2, y2 = found.boxes[i].tolist()
    box = [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)]
    line = {"bbox": box, "score": round(float(found.scores[i]), 5), "iscrowd": 0}
    if found.regions is None:
        return {**line, "area": round(box[2] * box[3], 2)}
    region = {"size": list(found.size), "counts": found.regions[i]}
    return {**line, "area": float(found.mask(i).sum()), "segmentation": region}


def content(
    about: Mapping[str, Any],
    card: ConceptCard,
    paths: Sequence[Path],
    predictions: Sequence[Detections],
    drawn: Sequence[Mapping[str, str]],
    threshold: float | None,
) -> dict[str, Any]:
    """What `predictions.json` holds; `drawn` names the drawn picture of each."""
    dataset = coco_dataset(paths, predictions, card.classes)
    dataset["images"] = [{**image, **d} for image, d in zip(dataset["images"], drawn)]
    return {"info": {**about, "score_threshold": card.score_threshold if threshold is None else threshold}, **dataset}


def drawn_picture(picture: Image.Image, prediction: Detections, classes: Sequence[str]) -> Image.Image:
    """A picture with what was found in it."""
    labels = torch.tensor([classes.index(label) for label in prediction.labels], dtype=torch.long)
    instances = Instances(prediction.boxes, labels, prediction.masks, prediction.scores)
    return draw_instances(picture, instances, classes, threshold=0.0)


def lines(path: str, prediction: Detections) -> Iterator[tuple]:
    """The lines of a table with `COLUMNS` for one picture."""
    masks = prediction.regions or [""] * len(prediction)
    each = zip(prediction.labels, prediction.scores.tolist(), prediction.boxes.tolist(), masks)
    for label, score, box, mask in each:
        yield (path, label, score, *box, *prediction.size, mask)
