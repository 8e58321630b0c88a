"""What of the lesions of a volume is seen in a picture: objects with boxes and masks, or patches around them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

from cones.data.masks import encode_mask, mask_bounds
from cones.data.prepared import Object
from cones.readers.volumes.cut import Box, Cut
from cones.readers.volumes.geometry import Grid, View
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
    """The objects of a slice's picture: all pixels of a lesion in it are one."""
    size = cut.view.size(grid)
    top, left, bottom, right = cut.box
    found = []
    for lesion in seen(lesions, cut.view.axis, at):
        mask = lesion.part(cut.view, at, size)[top:bottom, left:right]
        pixels, bounds = int(mask.sum()), mask_bounds(mask)
        where = f"{cut.name} slice {at} lesion {lesion.number}"
        if bounds and small.keeps(pixels, pixel_area(cut.view, grid), least, where):
            y1, x1, y2, x2 = map(float, bounds)
            found.append(Object(lesion.label, (x1, y1, x2, y2), encode_mask(mask), lesion=lesion.number))
    return tuple(found)


@dataclass(frozen=True)
class Patch:
    """A square around a lesion in one slice: its top left and its height and width in pixels of the whole slice."""

    number: int
    label: int
    at: int
    corner: tuple[int, int]
    size: tuple[int, int]

    def of(self, picture: UInt8[np.ndarray, "h w *colour"], box: Box) -> UInt8[np.ndarray, "a b *colour"]:
        """Its pixels, of a picture that is `box` of the slice; what lies outside is black."""
        found = np.zeros((*self.size, *picture.shape[2:]), np.uint8)
        top, left = self.corner[0] - box[0], self.corner[1] - box[1]
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
    down, across = view.pixel(grid)
    height, width = max(round(config.patch / down), 1), max(round(config.patch / across), 1)
    for lesion in lesions:
        areas = lesion.areas(view.axis)
        at = lesion.span(view.axis)[int(areas.argmax())]
        if not small.keeps(
            int(areas.max()), pixel_area(view, grid), config.least, f"lesion {lesion.number} slice {at}"
        ):
            continue
        bounds = mask_bounds(lesion.part(view, at, view.size(grid)))
        assert bounds is not None, "a lesion has voxels in the slice where it has most"
        corner = round((bounds[0] + bounds[2] - height) / 2), round((bounds[1] + bounds[3] - width) / 2)
        yield Patch(lesion.number, lesion.label, at, corner, (height, width))


def pixel_area(view: View, grid: Grid) -> float:
    """Square millimetres of a pixel."""
    down, across = view.pixel(grid)
    return down * across
