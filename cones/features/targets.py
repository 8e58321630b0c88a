"""What a detector is to find in cached pictures: objects, kept beside the features in the pictures' own pixels."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cones.common.errors import DataError
from cones.common.files import read_json, reading, write_json
from cones.data.prepared import Record
from cones.interfaces.pictures import Geometry, Instances

OBJECTS, CROPS = "objects.json", "crops.npy"


@dataclass(frozen=True)
class Picture:
    """The objects of one picture: `boxes` in its own pixels, masks as COCO's compressed run lengths, or None."""

    geometry: Geometry
    boxes: list[tuple[float, float, float, float]]
    labels: list[int]
    masks: list[str | None]
    crowd: list[bool]

    @property
    def has_masks(self) -> bool:
        return all(m is not None for m in self.masks)

    def truth(self) -> Instances:
        """All of its objects, crowds too, in the picture's own pixels, with the regions of masks if each has one."""
        return Instances(
            torch.tensor(self.boxes, dtype=torch.float32).reshape(-1, 4),
            torch.tensor(self.labels, dtype=torch.long),
            crowd=torch.tensor(self.crowd, dtype=torch.bool),
            regions=self._regions() if self.has_masks else None,
        )

    def _regions(self) -> tuple[dict[str, Any], ...]:
        return tuple({"size": list(self.geometry.original), "counts": str(m)} for m in self.masks)

    def bitmaps(self) -> Tensor:
        """The masks as (n, h, w) bool."""
        from pycocotools import mask as coco

        if not self.masks:
            return torch.zeros(0, *self.geometry.original, dtype=torch.bool)
        return torch.from_numpy(np.ascontiguousarray(coco.decode(list(self._regions())).transpose(2, 0, 1))).bool()


def picture_of(record: Record, geometry: Geometry | None) -> Picture:
    """The objects of a record, as they are seen in a view of its picture."""
    objects = record.objects or ()
    size = record.size or (0, 0)
    return Picture(
        geometry or Geometry(size, size, size),
        [o.box for o in objects],
        [o.label for o in objects],
        [o.mask for o in objects],
        [o.crowd for o in objects],
    )


class Targets:
    """The objects of a store's pictures, as truth to be measured against and as a view's targets to learn from."""

    def __init__(self, folder: Path) -> None:
        with reading(folder / OBJECTS):
            self.pictures = [_read(line) for line in read_json(folder / OBJECTS)["pictures"]]
        with reading(folder / CROPS):
            crops = torch.from_numpy(np.load(folder / CROPS)).float() if (folder / CROPS).exists() else None
        counted = [[i for i, c in enumerate(p.crowd) if not c] for p in self.pictures]
        of_picture = None if crops is None else crops.split([len(c) for c in counted])
        self._views = [
            self._view(p, keep, None if of_picture is None else of_picture[i])
            for i, (p, keep) in enumerate(zip(self.pictures, counted))
        ]

    @staticmethod
    def _view(picture: Picture, keep: list[int], crops: Tensor | None) -> tuple[Instances, Instances]:
        """The objects to learn in the plain view and in its mirror image; crowds are none."""
        (height, width), (h, w), whole = picture.geometry.original, picture.geometry.content, picture.truth()
        boxes = whole.boxes[keep] * torch.tensor([w / width, h / height]).repeat(2)
        labels = whole.labels[keep]
        mirrored = torch.stack([w - boxes[:, 2], boxes[:, 1], w - boxes[:, 0], boxes[:, 3]], 1)
        flipped = None if crops is None else crops.flip(-1)
        return Instances(boxes, labels, crops=crops), Instances(mirrored, labels.clone(), crops=flipped)

    @cached_property
    def truths(self) -> list[Instances]:
        return [p.truth() for p in self.pictures]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each picture."""
        return [p.geometry.original for p in self.pictures]

    def batch(self, rows: Sequence[int], views: Sequence[int]) -> tuple[tuple[Instances, ...], tuple[Geometry, ...]]:
        """The objects and the geometry of some pictures, each in the view asked for."""
        instances = tuple(self._views[row][view] for row, view in zip(rows, views))
        plain = (self.pictures[row].geometry for row in rows)
        geometry = tuple(Geometry(g.original, g.content, g.padded, flipped=bool(view)) for g, view in zip(plain, views))
        return instances, geometry


def _read(line: dict[str, Any]) -> Picture:
    (height, width), (h, w), (padded_h, padded_w) = line.pop("geometry")
    boxes = [(x1, y1, x2, y2) for x1, y1, x2, y2 in line.pop("boxes")]
    return Picture(Geometry((height, width), (h, w), (padded_h, padded_w)), boxes, **line)


def write_targets(folder: Path, pictures: Sequence[Picture], crops: Tensor | None) -> None:
    """Write the objects of a store's pictures beside its features; `crops` (N, s, s) of all that are no crowd."""
    lines = [
        {
            "geometry": [p.geometry.original, p.geometry.content, p.geometry.padded],
            "boxes": p.boxes,
            "labels": p.labels,
            "masks": p.masks,
            "crowd": p.crowd,
        }
        for p in pictures
    ]
    write_json(folder / OBJECTS, {"pictures": lines})
    if crops is not None:
        buffer = io.BytesIO()
        np.save(buffer, crops.to(torch.uint8).numpy())
        (folder / CROPS).write_bytes(buffer.getvalue())  # as bytes, so that a full disk is Python's own error


def read_targets(folder: Path) -> Targets | None:
    """The objects of a store; None where it has classes only."""
    return Targets(folder) if (folder / OBJECTS).exists() else None


def refuse_maskless(pictures: Sequence[Picture], names: Sequence[str]) -> None:
    """`DataError` when objects have no masks to learn or to measure against."""
    lacking = [name for picture, name in zip(pictures, names) if not picture.has_masks]
    if lacking:
        raise DataError(
            f"{len(lacking)} pictures have objects without masks ({', '.join(lacking[:3])}); the task segmentation "
            "needs one for each object: add them, or set the concept's task to detection"
        )
