"""Masks as the text of COCO's compressed run-length encoding, a few hundred bytes an object."""

import math
from dataclasses import dataclass

import numpy as np

from cones.common.errors import DataError
from cones.common.escaping import shortened
from cones.data.prepared import Object

LONGEST_RUN = 65
"""Bits of a run length, in the fives that a character holds."""
LONGEST_OUTLINE = 1000
"""Half perimeters of its picture that an object's outline may be long: all of it is walked along."""

Size = tuple[int, int]
Polygons = list[list[float]]
"""Each one x1, y1, x2, y2, ... in pixels; together they are one object."""


@dataclass(frozen=True)
class Runs:
    """COCO's run-length encoding: lengths of runs of 0 and 1 by turns, down the columns; text is the compressed form.

    `size` is (height, width) in pixels.
    """

    counts: list[int] | str
    size: Size


def encode_mask(mask: np.ndarray) -> str:
    """The compressed run lengths of a bool (H, W) array."""
    from pycocotools import mask as coco

    return coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode("ascii")


def mask_bounds(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """The first row and column of a bool (H, W) array, and those after the last; None for an empty one."""
    rows = np.flatnonzero(mask.any(1))
    if not len(rows):
        return None
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[top:bottom].any(0))
    return top, int(columns[0]), bottom, int(columns[-1]) + 1


def encode_part(part: np.ndarray, corner: tuple[int, int], size: Size) -> str:
    """The compressed run lengths of a mask of `size` (height, width) that is nothing but a bool (h, w) part of it,
    whose top left is at `corner` (row, column): those of `encode_mask`, at the cost of the part alone."""
    columns, rows = np.nonzero(part.T)  # down the columns
    places = (columns + corner[1]) * size[0] + rows + corner[0]
    first = np.flatnonzero(np.diff(places, prepend=-2) > 1)
    starts, ends = places[first], np.append(places[first[1:] - 1], places[-1:]) + 1
    bounds = np.stack([starts, ends], 1).ravel()
    lengths = np.diff(bounds, prepend=0, append=math.prod(size))
    lengths = lengths[:-1] if not lengths[-1] else lengths
    return _compressed(lengths.tolist(), size)


def object_mask(shown: Object, size: Size) -> np.ndarray:
    """The mask of an object of a picture of `size` (height, width): bool (H, W). `DataError` if it has none."""
    if shown.mask is None:
        raise DataError("the object has a box and no mask; data with masks is needed here")
    try:
        lengths = _run_lengths(shown.mask)
        _refuse_wrong_sum(lengths, size)
    except ValueError as error:
        raise DataError(f"the mask of the object at {shown.box} cannot be used: {error}") from None
    columns = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return np.ascontiguousarray(columns.reshape(size, order="F"))


def outline_mask(outline: Polygons | Runs, size: Size) -> str:
    """The compressed run lengths of an outline, for a picture of `size` (height, width).

    A pixel of any polygon is a pixel of the mask. `ValueError` says what makes an outline no mask of this picture.
    """
    from pycocotools import mask as coco

    if isinstance(outline, Runs):
        if outline.size != size:
            raise ValueError(f"its mask is {_text(outline.size)} pixels, and its picture {_text(size)}")
        lengths = _run_lengths(outline.counts) if isinstance(outline.counts, str) else outline.counts
        _refuse_wrong_sum(lengths, size)
        if isinstance(outline.counts, str):
            return outline.counts
        return _compressed(lengths, size)
    length = 0.0
    for polygon in outline:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon of {len(polygon)} numbers; it takes x and y of at least three points")
        xy = np.array(polygon).reshape(-1, 2)
        # Far points are a slip of units, and would have every pixel on the way to them drawn.
        if not (abs(xy / (size[1], size[0]) - 0.5) <= 1.5).all():
            raise ValueError("a polygon has a point that is not finite, or further out than the picture is large")
        length += float(abs(np.diff(xy, axis=0)).sum())
    if length > LONGEST_OUTLINE * sum(size):
        raise ValueError(f"an outline of {length:.0f} pixels, which goes to and fro over its picture without end")
    return coco.merge(coco.frPyObjects(outline, *size))["counts"].decode("ascii")


def _compressed(lengths: list[int], size: Size) -> str:
    """Run lengths that add up to a picture of `size` (height, width), as text."""
    from pycocotools import mask as coco

    return coco.frPyObjects({"counts": lengths, "size": list(size)}, *size)["counts"].decode("ascii")


def mask_area(counts: str) -> int:
    """The number of pixels of a mask."""
    return sum(_run_lengths(counts)[1::2])


def _run_lengths(counts: str) -> list[int]:
    """The run lengths in a compressed text (`rleFrString` of COCO's maskApi.c), with what that does not check."""
    lengths: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"{shortened(character)} does not occur in compressed run lengths")
        value |= (bits & 0x1F) << shift
        shift += 5
        if shift > LONGEST_RUN:
            raise ValueError("one of its run lengths has no end")
        if not bits & 0x20:
            value -= (bits & 0x10) << (shift - 4)  # the highest bit is the sign
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("its run lengths end in the middle of a number")
    return lengths


def _refuse_wrong_sum(lengths: list[int], size: Size) -> None:
    if min(lengths, default=-1) < 0 or sum(lengths) != math.prod(size):
        raise ValueError(f"its run lengths do not add up to the {_text(size)} pixels of its picture")


def _text(size: Size) -> str:
    return f"{size[1]} x {size[0]}"
