"""How the slices of a volume are to be cut: their window and the box around the body, looked for in some of them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cones.common.errors import DataError
from cones.data.masks import mask_bounds
from cones.readers.volumes.cut import Box, Cut
from cones.readers.volumes.geometry import Grid, View
from cones.readers.volumes.pixels import CLIPPED, THINNED, beyond, percentile_window
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
