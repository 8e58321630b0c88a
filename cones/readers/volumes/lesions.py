"""Label maps as lesions: numbered in three dimensions, and what of each is seen in a slice."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Shaped

from cones.common.errors import DataError
from cones.readers.volumes.geometry import View

LARGEST = 2**16
"""Values of label maps are below it."""
MOST_TOLD = 5
"""Values that an error lists."""


@dataclass(frozen=True)
class Lesion:
    """What belongs together in a label map: its number in its volume, from 1, its class (an index), where its box
    begins in the array, and its voxels in it."""

    number: int
    label: int
    corner: tuple[int, int, int]
    voxels: Bool[np.ndarray, "i j k"]

    def span(self, axis: int) -> range:
        """The slices along an axis in which it is seen."""
        return range(self.corner[axis], self.corner[axis] + self.voxels.shape[axis])

    def areas(self, axis: int) -> Int[np.ndarray, " n"]:
        """Its voxels in each of these slices."""
        return self.voxels.sum(tuple(other for other in range(3) if other != axis))

    def part(self, view: View, at: int, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
        """Its pixels in a slice, in a picture of `size` (height, width)."""
        shape = (size[1], size[0]) if view.swap else size
        plane = np.zeros(shape, bool)
        first, second = (axis for axis in range(3) if axis != view.axis)
        a, b = self.corner[first], self.corner[second]
        of = np.take(self.voxels, at - self.corner[view.axis], view.axis)
        plane[a : a + of.shape[0], b : b + of.shape[1]] = of
        return view.picture(plane)


def whole_labels(array: Shaped[np.ndarray, "i j k"], name: str) -> Int[np.ndarray, "i j k"]:
    """A label map as whole numbers; `DataError` for one that has fractions or no finite numbers."""
    if array.dtype.kind in "iu":
        return array
    if array.dtype.kind not in "fb" or not all(_is_whole(plane) for plane in array):
        raise DataError(f"{name} is no label map: it has values between whole numbers; write each voxel's class")
    fits = not array.size or (array.min() >= 0 and array.max() < LARGEST)
    return array.astype(np.uint16 if fits else np.int64)


def _is_whole(plane: np.ndarray) -> bool:
    return bool(np.isfinite(plane).all() and (plane == np.rint(plane)).all())


def lesions_of(
    array: Int[np.ndarray, "i j k"],
    labels: Mapping[int, int],
    name: str,
    whole: bool = False,
    origin: tuple[int, int, int] = (0, 0, 0),
    named_by: str = "`labels`",
) -> list[Lesion]:
    """The lesions of a label map: the connected parts (26 neighbours) of each value, `labels` giving its class, or the
    `whole` of each value. In the order of values and of the array, which is the part of its volume that begins at
    `origin`.

    `DataError` for a value without a class; `named_by` is what gives values their classes.
    """
    from scipy.ndimage import find_objects, label

    strange = [v for end in (array.min(initial=0), array.max(initial=0)) if not 0 <= (v := int(end)) < LARGEST]
    boxes = [] if strange else find_objects(array)
    values = [value for value, box in enumerate(boxes, 1) if box]
    strange += [v for v in values if v not in labels]
    if strange:
        listed = ", ".join(map(str, strange[:MOST_TOLD]))
        raise DataError(
            f"{name} has the values {listed}{'...' if len(strange) > MOST_TOLD else ''}, which {named_by} does not "
            f"name; it names {', '.join(map(str, sorted(labels)))}: add them, or set their voxels to 0"
        )
    found: list[Lesion] = []
    for value in values:
        within = boxes[value - 1]
        marked = array[within] == value
        parts = marked.astype(np.uint8) if whole else label(marked, np.ones((3, 3, 3), int))[0]
        for number, place in enumerate(find_objects(parts), 1):
            i, j, k = (first + outer.start + inner.start for first, outer, inner in zip(origin, within, place))
            found.append(Lesion(len(found) + 1, labels[value], (i, j, k), parts[place] == number))
    return found


def seen(lesions: Sequence[Lesion], axis: int, at: int) -> Iterator[Lesion]:
    """The lesions that a slice shows, or may show: those whose box it cuts."""
    return (lesion for lesion in lesions if at in lesion.span(axis))
