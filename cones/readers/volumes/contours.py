"""Contours as masks: the pixels of a slice that polygons enclose."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8

from cones.common.errors import DataError
from cones.common.reading import read_text
from cones.data.masks import object_mask, outline_mask
from cones.data.prepared import Object
from cones.readers.volumes.geometry import Grid
from cones.readers.volumes.headers import Shown
from cones.readers.volumes.scans import ContourFile

FIRST = 1.0
"""Where the middle of the first pixel is: these files count from 1. (On Sunnybrook the edge of the blood is sharpest
along contours that are moved by one pixel.)"""
LARGEST = 2**24
"""Bytes of a contour's file at most."""


def filled(polygons: Sequence[Float[np.ndarray, "n 2"]], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The pixels of a picture of `size` (height, width) whose middle is inside an odd number of polygons, so that one
    within another is a hole. Their points are x and y, with the middle of the first pixel at 0.

    `ValueError` says what makes a polygon none of this picture.
    """
    found = np.zeros(size, bool)
    for points in polygons:
        outline = outline_mask([(points + 0.5).ravel().tolist()], size)  # COCO has a pixel's edge at whole numbers
        found ^= object_mask(Object(0, (0.0, 0.0, 0.0, 0.0), outline), size)
    return found


def contour_map(
    contours: Sequence[ContourFile], grid: Grid, wanted: set[int], shown: Shown
) -> UInt8[np.ndarray, "i j k"]:
    """The label map of contours in files: where those of several values lie on each other, the least counts; values
    that are not wanted are 0."""
    found = np.zeros(grid.shape, np.uint8)
    columns, rows, _ = grid.shape
    for contour in sorted(contours, key=lambda c: -c.value):
        try:
            inside = filled([_points(contour.path) - FIRST], (rows, columns)).T
        except ValueError as error:
            raise DataError(f"{shown(contour.path)} is no contour of its image: {error}; correct it") from None
        found[..., contour.at][inside] = contour.value if contour.value in wanted else 0
    return found


def _points(path: Path) -> Float[np.ndarray, "n 2"]:
    """x and y of each line; `ValueError` for anything else."""
    lines = [line.split() for line in read_text(path, largest=LARGEST).splitlines() if line.strip()]
    if any(len(line) != 2 for line in lines):
        raise ValueError("it has a line that is not x and y")
    return np.array(lines, float).reshape(-1, 2)
