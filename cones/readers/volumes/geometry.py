"""Where the voxels of a volume are, and how its slices are seen as pictures and put back."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Shaped

Axis = Literal["axial", "coronal", "sagittal", "acquired"]
THROUGH: dict[str, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
"""The axis of the patient (0 left-right, 1 front-back, 2 feet-head) that slices of a plane follow."""
ACROSS_DOWN: dict[str, tuple[int, int]] = {"sagittal": (1, 2), "coronal": (0, 2), "axial": (0, 1)}
"""The axes of the patient along the columns and the rows of a picture."""
FAR = 0.01
"""Millimetres by which two affines may differ and be one grid."""
UNSQUARE = 0.01
"""Share by which a pixel may be longer than wide and is drawn as it is."""


@dataclass(frozen=True)
class Grid:
    """The voxels of a volume: how many along its axes i, j, k, and the affine (4, 4) that takes them to millimetres,
    with x to the right, y to the front and z to the head (RAS, as NIfTI has it)."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between voxels along i, j, k."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return i, j, k

    def difference(self, other: "Grid") -> str:
        """In words, why the voxels of another grid are not these; empty where they are."""
        if self.shape != other.shape:
            return f"has {_by(other.shape)} voxels, and its image {_by(self.shape)}"
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape])).reshape(3, -1)
        ends = np.vstack([corners, np.ones(8)])
        apart = np.linalg.norm((self.affine - other.affine)[:3] @ ends, axis=0).max()
        if not np.allclose(_directions(self.affine), _directions(other.affine), atol=1e-3):
            return "is turned or mirrored against its image"
        return f"lies up to {apart:.2f} mm away from its image" if apart > FAR else ""


@dataclass(frozen=True)
class View:
    """How slices are seen: along which axis of the array they follow each other, whether the other two axes change
    places, and whether rows and columns then run backwards."""

    axis: int
    swap: bool
    flip: tuple[bool, bool]

    @staticmethod
    def of(grid: Grid, axis: Axis) -> "View":
        """Slices as radiologists see them: the patient's left on the right of an axial or coronal one, the front on top
        of an axial one, the head on top of the others, the front on the left of a sagittal one. `acquired` ones follow
        the array's last axis and are as they are stored: i across, j down."""
        if axis == "acquired":
            return View(2, swap=True, flip=(False, False))
        from nibabel.orientations import io_orientation

        patient = io_orientation(grid.affine)  # for i, j, k: the patient's axis, and 1 where both run one way
        of = {int(towards): (place, bool(sign > 0)) for place, (towards, sign) in enumerate(patient)}
        across, down = (of[a] for a in ACROSS_DOWN[axis])
        return View(of[THROUGH[axis]][0], swap=down[0] > across[0], flip=(down[1], across[1]))

    def picture(self, plane: Shaped[np.ndarray, "a b"]) -> Shaped[np.ndarray, "h w"]:
        """A slice of the array, its two axes in their order, as rows and columns."""
        turned = plane.T if self.swap else plane
        return turned[:: -1 if self.flip[0] else 1, :: -1 if self.flip[1] else 1]

    def plane(self, picture: Shaped[np.ndarray, "h w"]) -> Shaped[np.ndarray, "a b"]:
        """The inverse: rows and columns as a slice of the array."""
        turned = picture[:: -1 if self.flip[0] else 1, :: -1 if self.flip[1] else 1]
        return turned.T if self.swap else turned

    def size(self, grid: Grid) -> tuple[int, int]:
        """(height, width) of a picture."""
        a, b = (n for axis, n in enumerate(grid.shape) if axis != self.axis)
        return (b, a) if self.swap else (a, b)

    def pixel(self, grid: Grid) -> tuple[float, float]:
        """Millimetres between the rows and between the columns of a picture."""
        a, b = (s for axis, s in enumerate(grid.spacing) if axis != self.axis)
        return (b, a) if self.swap else (a, b)

    def strided(self, grid: Grid, stride: float | None) -> list[int]:
        """The slices that lie nearest to each `stride` millimetres, from the first on."""
        count, step = grid.shape[self.axis], grid.spacing[self.axis]
        if stride is None or stride <= step:
            return list(range(count))
        places = (round(n * stride / step) for n in range(math.ceil(count * step / stride)))
        return [k for k in dict.fromkeys(places) if k < count]


def square_size(size: tuple[int, int], pixel: tuple[float, float]) -> tuple[int, int]:
    """(height, width) of a picture that shows `size` pixels of `pixel` mm with square ones, whose side is the shorter
    one of theirs, so that nothing is lost."""
    side = min(pixel)
    if max(pixel) <= (1 + UNSQUARE) * side:
        return size
    return round(size[0] * pixel[0] / side), round(size[1] * pixel[1] / side)


def nearest(picture: Shaped[np.ndarray, "a b"], size: tuple[int, int]) -> Shaped[np.ndarray, "h w"]:
    """A picture in another size (height, width), each pixel that of its nearest. One that is made larger and then as
    large as it was is the same."""
    if picture.shape == size:
        return picture
    rows, columns = ((2 * np.arange(to) + 1) * of // (2 * to) for to, of in zip(size, picture.shape))
    return picture[np.ix_(rows, columns)]


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _directions(affine: np.ndarray) -> np.ndarray:
    return affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
