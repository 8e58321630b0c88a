"""Slices as pictures: cropped, windowed, with square pixels, in three channels."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image

from cones.readers.volumes.geometry import View, nearest, square_size
from cones.readers.volumes.pixels import grey
from cones.readers.volumes.settings import Window
from cones.readers.volumes.volume import Volume

Box = tuple[int, int, int, int]
"""The first row and column, and those after the last."""


@dataclass(frozen=True)
class Cut:
    """How the slices of one volume become pictures: `box` of their pixels of `stored` mm (between rows, between
    columns), drawn as square ones."""

    name: str
    view: View
    stored: tuple[float, float]
    windows: tuple[Window, ...]
    box: Box
    slab: bool
    blank: tuple[tuple[int, int, int, int], ...] = ()

    @property
    def stored_size(self) -> tuple[int, int]:
        """(height, width) of what is kept of a slice, in its own pixels."""
        top, left, bottom, right = self.box
        return bottom - top, right - left

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of its pictures."""
        return square_size(self.stored_size, self.stored)

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of a picture in one of the slice's own, down and across."""
        (height, width), (rows, columns) = self.size, self.stored_size
        return height / rows, width / columns

    @property
    def pixel(self) -> tuple[float, float]:
        """Millimetres between the rows and between the columns of its pictures."""
        return self.stored[0] / self.scale[0], self.stored[1] / self.scale[1]

    def picture(self, volume: Volume, at: int) -> UInt8[np.ndarray, "h w *colour"]:
        """One slice: in grey (h, w), or in three channels (h, w, 3)."""
        found = self._shades(volume, at)
        if self.size == self.stored_size:
            return found
        height, width = self.size
        return np.asarray(Image.fromarray(found).resize((width, height), Image.Resampling.BILINEAR))

    def mask(self, whole: Bool[np.ndarray, "a b"]) -> Bool[np.ndarray, "h w"]:
        """What its picture shows of a mask of a whole slice."""
        top, left, bottom, right = self.box
        return nearest(whole[top:bottom, left:right], self.size)

    def voxels(self, mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "rows columns"]:
        """The inverse, in what is kept of the slice: a mask of a picture in the slice's own pixels."""
        return nearest(mask, self.stored_size)

    def _shades(self, volume: Volume, at: int) -> UInt8[np.ndarray, "rows columns *colour"]:
        """A picture in the slice's own pixels."""
        last = volume.grid.shape[self.view.axis] - 1
        if not self.slab:
            values = self.values(volume, at)
            if values.ndim == 3:
                return values.astype(np.uint8)
            shades = [grey(values, window, volume.inverted) for window in self.windows]
            return shades[0] if len(shades) == 1 else np.stack(shades, -1)
        near = [self.values(volume, min(max(at + step, 0), last)) for step in (-1, 0, 1)]
        return np.stack([grey(values, self.windows[0], volume.inverted) for values in near], -1)

    def values(self, volume: Volume, at: int) -> Shaped[np.ndarray, "h w *colour"]:
        """What is kept of a slice; to be looked at only."""
        top, left, bottom, right = self.box
        values = seen_values(volume, self.view, at)
        values = values.copy() if self.blank else values
        for x, y, w, h in self.blank:
            values[y : y + h, x : x + w] = values.min()
        return values[top:bottom, left:right]


def seen_values(volume: Volume, view: View, at: int) -> Shaped[np.ndarray, "h w *colour"]:
    """The values of a slice as rows and columns; colour in 8 bits as it is."""
    plane = volume.plane(view.axis, at)
    if plane.ndim == 3:
        return np.stack([view.picture(plane[..., c]) for c in range(3)], -1)
    return view.picture(plane).astype(np.float32, copy=False)
