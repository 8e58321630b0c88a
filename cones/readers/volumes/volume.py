"""One volume, from a DICOM series or a file, seen slice by slice."""

import warnings
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Shaped

from cones.common.errors import DataError
from cones.common.escaping import one_line
from cones.data.pictures import GRIDS, VOLUMES
from cones.readers.volumes.geometry import Grid
from cones.readers.volumes.headers import Shown
from cones.readers.volumes.nrrd import SUFFIXES, open_nrrd
from cones.readers.volumes.pixels import DicomPixels, refuse_not_finite
from cones.readers.volumes.series import Series

KEPT = 32
"""Slices of a series that are kept once they are read: their neighbours and what is looked at first need them again."""
SMALLEST = 1e-9
"""Cubic millimetres that a voxel has at least."""


class Volume(Protocol):
    """Values on a grid. `inverted` values are shown with the lowest white."""

    @property
    def grid(self) -> Grid: ...

    @property
    def modality(self) -> str: ...

    @property
    def inverted(self) -> bool: ...

    def plane(self, axis: int, at: int) -> Shaped[np.ndarray, "a b *colour"]:
        """One slice of the array: its two other axes, in their order."""
        ...


@dataclass
class SeriesVolume:
    """A DICOM series: a file is read for each slice across it, all of them for another plane."""

    series: Series
    pixels: DicomPixels
    frame: int | None = None
    _near: "OrderedDict[int, np.ndarray]" = field(default_factory=OrderedDict, repr=False)

    @property
    def grid(self) -> Grid:
        return self.series.grid

    @property
    def modality(self) -> str:
        return self.series.first.modality

    @property
    def inverted(self) -> bool:
        return self.series.first.get("PhotometricInterpretation") == "MONOCHROME1"

    def plane(self, axis: int, at: int) -> Shaped[np.ndarray, "a b *colour"]:
        if axis != 2:
            return np.take(self._whole, at, axis)
        if at not in self._near:
            self._near[at] = self.pixels.plane(self.series.headers[at], self.frame)
            if len(self._near) > KEPT:
                self._near.popitem(last=False)
        return self._near[at]

    @cached_property
    def _whole(self) -> np.ndarray:
        return np.stack([self.pixels.plane(header, self.frame) for header in self.series.headers], 2)


@dataclass
class FileVolume:
    """A volume of a file, which is read when a slice is first asked for, in the type that it has there."""

    image: Any
    grid: Grid
    name: str
    index: int | None = None
    modality: str = "unknown"
    inverted: bool = False

    @cached_property
    def array(self) -> Shaped[np.ndarray, "i j k"]:
        """`DataError` for a file that breaks off, or does not fit into memory."""
        try:
            of = self.image.dataobj
            return np.asanyarray(of if self.index is None else of[..., self.index]).reshape(self.grid.shape)
        except Exception as error:  # of a file from anywhere, in any way
            raise DataError(
                f"{self.name} cannot be read as a volume: {_why(error, self.image.get_filename(), self.name)}; export "
                "it anew"
            ) from None

    def plane(self, axis: int, at: int) -> Shaped[np.ndarray, "a b"]:
        found = np.take(self.array, at, axis)
        if found.dtype.kind == "f":
            refuse_not_finite(found, self.name)
        return found


def is_volume_file(path: Path) -> bool:
    return path.name.lower().endswith(GRIDS)


def stem(path: Path) -> str:
    """The name of a volume's file or folder, without what says its format."""
    lower = path.name.lower()
    longest = max((len(suffix) for suffix in VOLUMES if lower.endswith(suffix)), default=0)
    return path.name[: len(path.name) - longest]


def open_file(path: Path, shown: Shown, index: int | None = None, modality: str = "unknown") -> FileVolume:
    """A NIfTI, MGH or NRRD file by MONAI's readers.

    `DataError` for one that cannot be read, has no affine, or is 4-D where `index` does not say which of its volumes is
    meant.
    """
    from monai.data.image_reader import NibabelReader

    name = shown(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tags beside the standard; what counts is checked
            nrrd = path.name.lower().endswith(SUFFIXES)
            image: Any = open_nrrd(path, name) if nrrd else NibabelReader().read(path)
    except DataError:
        raise
    except Exception as error:  # of a file from anywhere, in any way
        raise DataError(f"{name} cannot be read as a volume: {_why(error, path, name)}; export it anew") from None
    shape, affine = tuple(int(n) for n in image.shape), np.asarray(image.affine, float)
    several = shape[3] if len(shape) == 4 else 1
    if not 2 <= len(shape) <= 4 or min(shape) < 1:
        raise DataError(f"{name} has the axes {shape}; a volume has 3, or 4 with `volume_index`")
    if several > 1 and (index is None or index >= several):
        raise DataError(f"{name} holds {several} volumes; say with `volume_index` which is meant, 0 to {several - 1}")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < SMALLEST:
        raise DataError(f"{name} does not say where its voxels are (its affine is {affine.tolist()}); correct it")
    i, j, k = (*shape, 1, 1)[:3]
    chosen = None if len(shape) < 4 else index if several > 1 else 0
    return FileVolume(image, Grid((i, j, k), affine), name, chosen, modality)


def _why(error: Exception, path: object, name: str) -> str:
    """What a library says, with a file called as messages call it."""
    return one_line(str(error).replace(str(path), name), 200)
