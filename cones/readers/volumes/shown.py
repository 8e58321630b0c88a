"""What of the lesions of a volume is seen in a picture: objects with boxes and masks, or patches around them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

from cones.data.masks import encode_mask
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
        pixels = int(mask.sum())
        if pixels and small.keeps(
            pixels, pixel_area(cut.view, grid), least, f"{cut.name} slice {at} lesion {lesion.number}"
        ):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
            found.append(Object(lesion.label, box, encode_mask(mask), lesion=lesion.number))
    return tuple(found)


@dataclass(frozen=True)
class Patch:
    """A square around a lesion in one slice: its top left and its height and width in pixels of the whole slice."""

    number: int
    label: int
    at: int
    corner: tuple[int, int]
    size: tuple[int, int]

    def of(self, picture: UInt8[np.ndarray, "h w 3"], box: Box) -> UInt8[np.ndarray, "a b 3"]:
        """Its pixels, of a picture that is `box` of the slice; what lies outside is black."""
        found = np.zeros((*self.size, 3), np.uint8)
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
        rows, columns = np.nonzero(lesion.part(view, at, view.size(grid)))
        middle = (rows.min() + rows.max() + 1) / 2, (columns.min() + columns.max() + 1) / 2
        corner = round(middle[0] - height / 2), round(middle[1] - width / 2)
        yield Patch(lesion.number, lesion.label, at, corner, (height, width))


def pixel_area(view: View, grid: Grid) -> float:
    """Square millimetres of a pixel."""
    down, across = view.pixel(grid)
    return down * across
