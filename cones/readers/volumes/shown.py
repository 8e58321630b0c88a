"""What of the lesions of a volume is seen in a picture: objects with boxes and masks, or patches around them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

from cones.data.masks import encode_mask, mask_bounds
from cones.data.prepared import Object
from cones.readers.volumes.cut import Box, Cut
from cones.readers.volumes.geometry import Grid, View, square_size
from cones.readers.volumes.lesions import Lesion, seen
from cones.readers.volumes.settings import Least, VolumeData


@dataclass
class SmallLesions:
    """What was left out of slices for its size."""

    lines: list[str] = field(default_factory=list)

    def keeps(self, pixels: int, pixel_mm2: float, least: Least, name: str) -> bool:
        """Whether an object of some pixels is kept; if it is not, that is noted."""
        if is_large(pixels, pixel_mm2, least):
            return True
        self.lines.append(f"{name}: {pixels} pixels, {pixels * pixel_mm2:.1f} mm2")
        return False


def is_large(pixels: int, pixel_mm2: float, least: Least) -> bool:
    return pixels >= least.pixels and pixels * pixel_mm2 >= least.mm2


def slices_with(lesions: Sequence[Lesion], view: View, grid: Grid, least: Least) -> set[int]:
    """The slices in which a lesion is large enough to be an object."""
    area = pixel_area(view, grid)
    return {
        at
        for lesion in lesions
        for at, pixels in zip(lesion.span(view.axis), lesion.areas(view.axis).tolist())
        if is_large(pixels, area, least)
    }


def objects_in(
    lesions: Sequence[Lesion], cut: Cut, grid: Grid, at: int, least: Least, small: SmallLesions
) -> tuple[Object, ...]:
    """The objects of a slice's picture: all pixels of a lesion in it are one. Its own pixels say how large it is, and
    not those that it is drawn with."""
    size = cut.view.size(grid)
    top, left, bottom, right = cut.box
    found = []
    for lesion in seen(lesions, cut.view.axis, at):
        whole = lesion.part(cut.view, at, size)
        pixels, mask = int(np.count_nonzero(whole[top:bottom, left:right])), cut.mask(whole)
        bounds, where = mask_bounds(mask), f"{cut.name} slice {at} lesion {lesion.number}"
        if bounds and small.keeps(pixels, pixel_area(cut.view, grid), least, where):
            y1, x1, y2, x2 = map(float, bounds)
            found.append(Object(lesion.label, (x1, y1, x2, y2), encode_mask(mask), lesion=lesion.number))
    return tuple(found)


@dataclass(frozen=True)
class Patch:
    """A square around a lesion in one slice: its top left and its height and width in pixels of the whole slice as it
    is drawn, of which each of its own has `scale`."""

    number: int
    label: int
    at: int
    corner: tuple[int, int]
    size: tuple[int, int]
    scale: tuple[float, float]

    def of(self, picture: UInt8[np.ndarray, "h w *colour"], box: Box) -> UInt8[np.ndarray, "a b *colour"]:
        """Its pixels, of a picture that shows `box` of the slice; what lies outside is black."""
        found = np.zeros((*self.size, *picture.shape[2:]), np.uint8)
        top, left = (first - round(of * scale) for first, of, scale in zip(self.corner, box, self.scale))
        first = max(top, 0), max(left, 0)
        last = min(top + self.size[0], picture.shape[0]), min(left + self.size[1], picture.shape[1])
        if first[0] < last[0] and first[1] < last[1]:
            found[first[0] - top : last[0] - top, first[1] - left : last[1] - left] = picture[
                first[0] : last[0], first[1] : last[1]
            ]
        return found


def patches_of(
    lesions: Sequence[Lesion], view: View, grid: Grid, config: VolumeData, small: SmallLesions
) -> Iterator[Patch]:
    """A patch for each lesion, around its middle in the slice where it is largest."""
    assert config.patch is not None
    whole = view.size(grid)
    drawn, (down, across) = square_size(whole, view.pixel(grid)), view.pixel(grid)
    scale = drawn[0] / whole[0], drawn[1] / whole[1]
    height, width = max(round(config.patch / down * scale[0]), 1), max(round(config.patch / across * scale[1]), 1)
    for lesion in lesions:
        areas = lesion.areas(view.axis)
        at = lesion.span(view.axis)[int(areas.argmax())]
        if not small.keeps(
            int(areas.max()), pixel_area(view, grid), config.least, f"lesion {lesion.number} slice {at}"
        ):
            continue
        bounds = mask_bounds(lesion.part(view, at, whole))
        assert bounds is not None, "a lesion has voxels in the slice where it has most"
        y, x = (bounds[0] + bounds[2]) * scale[0], (bounds[1] + bounds[3]) * scale[1]
        corner = round((y - height) / 2), round((x - width) / 2)
        yield Patch(lesion.number, lesion.label, at, corner, (height, width), scale)


def pixel_area(view: View, grid: Grid) -> float:
    """Square millimetres of a pixel."""
    down, across = view.pixel(grid)
    return down * across
