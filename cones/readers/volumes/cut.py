"""Slices as pictures: cropped, windowed, with square pixels, in three channels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image

from cones.common.errors import DataError
from cones.data.masks import mask_bounds
from cones.readers.volumes.geometry import Grid, View, nearest, square_size
from cones.readers.volumes.pixels import CLIPPED, THINNED, beyond, grey, percentile_window, refuse_not_finite
from cones.readers.volumes.settings import WINDOWS, Blank, VolumeData, Window
from cones.readers.volumes.volume import Volume

BODY = {"CT": -300.0}
"""Above it is body, in HU; of other pictures, what is above the mean of their values."""
MARGIN = 2
"""Pixels around the body that are kept."""

LOOKED_AT = 24
"""Slices of a volume from which its body and its range of values are taken."""

LONGEST = 50.0
"""How many times as long as wide a pixel may be: as squares it becomes so many."""

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
        top, left, bottom, right = self.box
        values = seen_values(volume, self.view, at)
        refuse_not_finite(values, self.name)
        for x, y, w, h in self.blank:
            values[y : y + h, x : x + w] = values.min()
        return values[top:bottom, left:right]


def seen_values(volume: Volume, view: View, at: int) -> Shaped[np.ndarray, "h w *colour"]:
    """The values of a slice as rows and columns, in an array of its own; colour in 8 bits as it is."""
    plane = volume.plane(view.axis, at)
    if plane.ndim == 3:
        return np.stack([view.picture(plane[..., c]) for c in range(3)], -1)
    return view.picture(plane).astype(np.float32)


def cut_of(config: VolumeData, volume: Volume, own: Window | None, places: Sequence[int], name: str) -> Cut:
    """How a volume is cut, its window and its body looked for on some of the slices `places`; `own` is the window of
    its file, `name` what errors call it.

    `DataError` for values that are not finite, and for a window in which nothing is to be seen.
    """
    view = View.of(volume.grid, config.slices.axis)
    blank = (
        tuple((b[0], b[1], b[2], b[3]) for b in config.burned_in.blank) if isinstance(config.burned_in, Blank) else ()
    )
    height, width = view.size(volume.grid)
    stored = _pixel(view, volume.grid, name)
    whole = Cut(name, view, stored, (), (0, 0, height, width), config.channels == "slab", blank)
    box, thin = None, []
    for at in spread(places):
        values = whole.values(volume, at)
        if values.ndim == 3:
            continue
        thin.append(values[::THINNED, ::THINNED].ravel())
        if config.crop == "body":
            box = _union(box, _body(values, volume.modality))
    box = box or whole.box
    if isinstance(config.crop, list):
        down, across = stored
        x, y, w, h = config.crop
        box = (
            round(y / down),
            round(x / across),
            min(round((y + h) / down), height),
            min(round((x + w) / across), width),
        )
        if box[0] >= box[2] or box[1] >= box[3]:
            raise DataError(f"`crop` {config.crop} mm leaves nothing of {name}, which is {height} x {width} pixels")
    if not thin:
        return replace(whole, box=box, slab=False)
    values = np.concatenate(thin)
    chosen = config.channels if isinstance(config.channels, list) else [config.window]
    windows = tuple(_window(one, own, values, name) for one in chosen)
    clipped = min(beyond(values, window) for window in windows)
    if clipped >= CLIPPED:
        first = windows[0]
        raise DataError(
            f"the window of level {first.level:g} and width {first.width:g} leaves {100 * clipped:.1f} % of {name} "
            f"black or white, whose values are {values.min():g} to {values.max():g}; set another `window`"
        )
    return replace(whole, windows=windows, box=box)


def _pixel(view: View, grid: Grid, name: str) -> tuple[float, float]:
    down, across = view.pixel(grid)
    if max(down, across) > LONGEST * min(down, across):
        raise DataError(
            f"{name} has pixels of {down:g} x {across:g} mm in its slices; drawn as squares one becomes more than "
            f"{LONGEST:g}: set another `slices.axis`, or put right its spacing"
        )
    return down, across


def spread(places: Sequence[int]) -> list[int]:
    """At most `LOOKED_AT` of them, evenly."""
    return [
        places[i] for i in np.unique(np.linspace(0, len(places) - 1, min(len(places), LOOKED_AT)).round().astype(int))
    ]


def _window(asked: object, own: Window | None, values: np.ndarray, name: str) -> Window:
    if isinstance(asked, Window):
        return asked
    if asked == "percentile":
        return percentile_window(values, name)
    if isinstance(asked, str):
        return WINDOWS[asked]
    if own is None:
        raise DataError(
            f"{name} has no window of its own; set `window`: {', '.join(WINDOWS)}, percentile, or {{level, width}}"
        )
    return own


def _body(values: np.ndarray, modality: str) -> Box | None:
    """The box around what is body in a slice."""
    bounds = mask_bounds(values > BODY.get(modality, float(values.mean())))
    if bounds is None:
        return None
    top, left, bottom, right = bounds
    height, width = values.shape
    return max(top - MARGIN, 0), max(left - MARGIN, 0), min(bottom + MARGIN, height), min(right + MARGIN, width)


def _union(a: Box | None, b: Box | None) -> Box | None:
    if a is None or b is None:
        return a or b
    return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])
