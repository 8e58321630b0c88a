"""Objects as annotations mark them, and the rules by which they are kept, clipped, left out or refused.

- A box or outline that is not finite, a box of negative size and an outline that is no mask are refused by name.
- A box of zero area, or wholly outside its picture, is left out and listed; so is an object whose mask has no pixel.
- A box that sticks out is clipped to its picture, and listed from a tenth of a pixel on: less is rounding.
- A crowd (COCO's iscrowd, VOC's difficult) is kept as one and counted apart.
- Objects without a mask are kept and counted; what needs masks refuses such data by that number.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from cones.common.errors import DataError
from cones.common.escaping import printable, quoted
from cones.common.messages import nearest
from cones.data.masks import Polygons, Runs, Size, mask_area, outline_mask
from cones.data.prepared import Object, Record

ROUNDING = 0.1
"""Pixels that a box may stick out before it is listed."""


@dataclass(frozen=True)
class Mark:
    """An object as an annotation gives it: what to call it, its class, and its box as xyxy in pixels.

    With `relative`, the box and the polygons of the outline are in shares of the picture's width and height.
    """

    where: str
    label: int
    box: tuple[float, float, float, float]
    outline: Polygons | Runs | None = None
    crowd: bool = False
    relative: bool = False


@dataclass
class Findings:
    """What was found wrong with objects, each a line that names it."""

    refused: list[str] = field(default_factory=list)
    zero_area: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    empty_mask: list[str] = field(default_factory=list)
    clipped: list[str] = field(default_factory=list)

    def refuse(self, source: str) -> None:
        """Raise `DataError` for objects that no rule makes usable."""
        if self.refused:
            first = "\n".join(f"  - {line}" for line in self.refused[:10])
            raise DataError(f"{len(self.refused)} objects of {source} cannot be used:\n{first}\nrepair or remove them")

    def report(self, splits: Mapping[str, Sequence[Record]], classes: Sequence[str]) -> dict:
        """The numbers of objects that were kept, in all and by split and class, and the lists of what was not.

        `kept` and `by_class` leave crowds out; `without_mask` counts them.
        """
        records = [record for split in splits.values() for record in split]
        objects = [o for record in records for o in record.objects or ()]
        by_class = {
            split: Counter(o.label for record in of for o in record.objects or () if not o.crowd)
            for split, of in splits.items()
        }
        lists = asdict(self)
        del lists["refused"]
        return {
            "kept": sum(not o.crowd for o in objects),
            "crowd": sum(o.crowd for o in objects),
            "without_mask": sum(o.mask is None for o in objects),
            "pictures_without_objects": sum(not record.objects for record in records),
            "by_class": {s: {name: of[label] for label, name in enumerate(classes)} for s, of in by_class.items()},
            **lists,
        }


def settle(picture: str, marks: Iterable[Mark], size: Size, findings: Findings) -> tuple[Object, ...]:
    """The objects of a picture of `size` (height, width) by the rules above; what they say goes to `findings`."""
    settled = (_settle(printable(f"{picture} {mark.where}"), mark, size, findings) for mark in marks)
    return tuple(shown for shown in settled if shown is not None)


def _settle(name: str, mark: Mark, size: Size, findings: Findings) -> Object | None:
    height, width = size
    x1, y1, x2, y2 = _scaled(mark.box, size) if mark.relative else mark.box
    shown = f"{name}: box ({x1:g}, {y1:g}, {x2:g}, {y2:g})"
    box = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    if not all(math.isfinite(v) for v in (x1, y1, x2, y2)):
        findings.refused.append(f"{shown} is not finite")
    elif x2 < x1 or y2 < y1:
        findings.refused.append(f"{shown} has a negative size")
    elif x1 == x2 or y1 == y2:
        findings.zero_area.append(shown)
    elif box[0] >= box[2] or box[1] >= box[3]:
        findings.outside.append(f"{shown} of {width} x {height} pixels")
    else:
        try:
            mask = _mask(mark, size)
        except ValueError as error:
            findings.refused.append(f"{name}: {error}")
            return None
        if mask is not None and not mask_area(mask):
            findings.empty_mask.append(shown)
            return None
        if max(box[0] - x1, box[1] - y1, x2 - box[2], y2 - box[3]) >= ROUNDING:
            findings.clipped.append(f"{shown} of {width} x {height} pixels")
        return Object(mark.label, box, mask, mark.crowd)
    return None


def _mask(mark: Mark, size: Size) -> str | None:
    if mark.outline is None:
        return None
    if isinstance(mark.outline, Runs) or not mark.relative:
        return outline_mask(mark.outline, size)
    return outline_mask([_scaled(polygon, size) for polygon in mark.outline], size)


def _scaled(shares: Sequence[float], size: Size) -> list[float]:
    """x, y, x, y, ... in shares of the sides, as pixels."""
    return [share * size[1 - i % 2] for i, share in enumerate(shares)]


def label_of(name: str, labels: Mapping[str, int], where: str) -> int:
    """The label of a class; `DataError` for one that `classes` leaves out."""
    if name not in labels:
        raise DataError(
            f"{where} is of the class {quoted(name)}, which is not in `classes`{nearest(name, labels)}; "
            "add it there, or remove what is marked so"
        )
    return labels[name]


def labels_of(classes: Sequence[str]) -> dict[str, int]:
    """The label of each class."""
    return {name: label for label, name in enumerate(classes)}
