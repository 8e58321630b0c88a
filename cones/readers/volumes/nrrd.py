"""NRRD files: where their voxels are by their header, and their values by MONAI's reader."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from cones.common.errors import DataError
from cones.data.listing import inside

SUFFIXES = (".nrrd", ".nhdr")
TO_RAS = {
    "right-anterior-superior": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
}
"""The signs that turn a space of the format (http://teem.sourceforge.net/nrrd/format.html#space) into NIfTI's."""
SHORT = {"".join(word[0] for word in space.split("-")): space for space in TO_RAS}


@dataclass(frozen=True)
class NrrdFile:
    """What of a NRRD file a volume needs, named as in nibabel's images: i, j, k or i, j, k, which voxels, and the
    affine (4, 4) that takes i, j, k to millimetres in RAS."""

    path: Path
    shape: tuple[int, ...]
    affine: Float[np.ndarray, "4 4"]
    last: int | None
    """The axis of the file that is none of space, and so comes last here."""

    def get_filename(self) -> str:
        return str(self.path)

    @property
    def dataobj(self) -> Shaped[np.ndarray, "..."]:
        """The values, in the type that they have in the file."""
        from monai.data.image_reader import NrrdReader

        image: Any = NrrdReader().read(self.path)
        array = image.array
        return array if self.last is None else np.moveaxis(array, self.last, -1)


def open_nrrd(path: Path, name: str) -> NrrdFile:
    """A file by its header; `name` is what errors call it.

    `DataError` for one in an unknown space or without directions, and for values in more files than one or in a file
    outside of its folder; pynrrd's errors for a header that it cannot read.
    """
    import nrrd

    header = nrrd.read_header(str(path))
    if "data file" in header or "datafile" in header:
        values = str(header.get("data file", header.get("datafile")))
        if not _is_beside(path.parent, values):
            raise DataError(f"{name} has its values in several files, or elsewhere; write them into one beside it")
    directions, space = header.get("space directions"), str(header.get("space", "")).lower()
    space = SHORT.get(space, space)
    if directions is None or space not in TO_RAS:
        raise DataError(
            f"{name} does not say where its voxels are (space: {space or 'none'}, space directions: "
            f"{'none' if directions is None else 'there'}); write it anew with `space directions` and a `space` of "
            f"{', '.join(TO_RAS)}"
        )
    ways = np.array([[np.nan] * 3 if way is None else way for way in directions], float)
    spatial = np.flatnonzero(np.isfinite(ways).all(1))
    others = sorted(set(range(len(ways))) - set(spatial.tolist()))
    if len(spatial) != 3 or len(others) > 1:
        raise DataError(
            f"{name} has {len(spatial)} axes of space and {len(others)} others; a volume has 3 and at most one"
        )
    affine = np.eye(4)
    affine[:3, :3] = ways[spatial].T
    affine[:3, 3] = header.get("space origin", np.zeros(3))
    affine[:3] *= np.array(TO_RAS[space])[:, None]
    sizes = [int(n) for n in header["sizes"]]
    return NrrdFile(path, tuple(sizes[a] for a in [*spatial, *others]), affine, others[0] if others else None)


def _is_beside(folder: Path, values: str) -> bool:
    """Whether what a header has as its `data file` is one that is in the folder, or below it."""
    try:
        return "%" not in values and not values.upper().startswith("LIST") and inside(folder, values, "it").is_file()
    except DataError:
        return False
