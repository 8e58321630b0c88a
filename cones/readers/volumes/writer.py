"""The slices of volumes as pictures with what is marked in them: those of one split."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from cones.common.errors import DataError
from cones.data.prepared import Record
from cones.readers.volumes.cut import Cut
from cones.readers.volumes.cutting import cut_of
from cones.readers.volumes.geometry import View
from cones.readers.volumes.marked import MarkedVolume
from cones.readers.volumes.pixels import own_window
from cones.readers.volumes.series import Series
from cones.readers.volumes.settings import VolumeData
from cones.readers.volumes.shown import Patch, SmallLesions, objects_in, patches_of, slices_with
from cones.readers.volumes.volume import Volume

MOST_WAITING = 16
"""Pictures that wait to be packed, so that they take no room to speak of."""


@dataclass
class Writer:
    """Writes the pictures of one split; a `pool` of threads packs them while the next slice is read."""

    config: VolumeData
    folder: Path
    split: str
    small: SmallLesions
    pool: Executor
    written: list[tuple[Future[str], Record]] = field(default_factory=list)
    volumes: dict[str, Any] = field(default_factory=dict)
    unannotated: list[str] = field(default_factory=list)

    def add(self, marked: MarkedVolume, group: str, number: int) -> None:
        """Write the pictures of a volume, the `number`-th of its data set."""
        own = own_window(marked.scan.image.first) if isinstance(marked.scan.image, Series) else None
        view = View.of(marked.volume.grid, self.config.slices.axis)
        strided = self._annotated(marked, view)
        if self.config.patch is not None:
            chosen: dict[int, list[Patch]] = {}
            for patch in patches_of(marked.lesions, view, marked.volume.grid, self.config, self.small):
                chosen.setdefault(patch.at, []).append(patch)
        else:
            chosen = {at: [] for at in self._places(marked, view, strided, number)}
        cut = cut_of(self.config, marked.volume, own, sorted(chosen), marked.name)
        written: list[tuple[Future[str], Record]] = []
        for picture, record in self._pictures(marked, group, cut, chosen):
            if len(written) >= MOST_WAITING:
                written[-MOST_WAITING][0].result()
            written.append((self.pool.submit(write_png, picture, self.folder), record))
        self.written += written
        self.volumes[marked.name] = told_of(marked.volume, cut, group)

    def finish(self) -> list[Record]:
        """The records of all pictures, once the pool is done; those of volumes that turned out not to be readable to
        their end are removed."""
        records = [_filed(*one) for one in self.written]
        kept = {record.file for record in records}
        for path in (self.folder / "pictures").iterdir():
            if f"pictures/{path.name}" not in kept:
                path.unlink()
        return records

    def _annotated(self, marked: MarkedVolume, view: View) -> list[int]:
        """The slices at the stride that somebody looked for lesions."""
        strided, there = view.strided(marked.volume.grid, self.config.slices.stride), marked.scan.annotated
        if there is None:
            return strided
        if view.axis != 2:
            raise DataError(
                f"{marked.name} is annotated in some of its slices alone, across which `slices.axis: "
                f"{self.config.slices.axis}` cuts; set it to `acquired`"
            )
        self.unannotated += [f"{marked.name} slice {at}" for at in strided if at not in there]
        return [at for at in strided if at in there]

    def _pictures(
        self, marked: MarkedVolume, group: str, cut: Cut, chosen: Mapping[int, Sequence[Patch]]
    ) -> Iterator[tuple[UInt8[np.ndarray, "h w *colour"], Record]]:
        """Each picture and its record, which knows its file when it is written."""
        for at, patches in sorted(chosen.items()):
            picture = cut.picture(marked.volume, at)
            name = f"{marked.name}-{at:04d}"
            of: dict[str, Any] = {"group": group, "volume": marked.name, "slice": at}
            for patch in patches:
                yield patch.of(picture, cut.box), Record(f"{name}-{patch.number}", patch.label, "", "", **of)
            if self.config.patch is None:
                objects = objects_in(marked.lesions, cut, marked.volume.grid, at, self.config.least, self.small)
                yield picture, Record(name, -1, "", "", objects=objects, size=cut.size, **of)

    def _places(self, marked: MarkedVolume, view: View, strided: Sequence[int], number: int) -> list[int]:
        """The slices that become pictures."""
        if self.split != "train" or self.config.slices.choose == "all":
            return list(strided)
        with_lesion = slices_with(marked.lesions, view, marked.volume.grid, self.config.least)
        showing = [at for at in strided if at in with_lesion]
        without = [at for at in strided if at not in with_lesion]
        wanted = min(round(self.config.slices.negatives * max(len(showing), 1)), len(without))
        rng = np.random.default_rng([self.config.seed, number])
        return sorted([*showing, *rng.permutation(without)[:wanted].tolist()])


def write_png(picture: UInt8[np.ndarray, "h w *colour"], folder: Path) -> str:
    """Write a picture into `pictures` of a folder, in grey where its channels are one; the SHA-256 of its file."""
    import cv2  # as it packs a PNG in a quarter of the time that Pillow takes

    if picture.ndim == 3:
        picture = picture[..., 0] if (picture[..., :1] == picture).all() else picture[..., ::-1]
    done, packed = cv2.imencode(".png", np.ascontiguousarray(picture))
    assert done, "a PNG holds any picture of 8 bits"
    content = packed.tobytes()
    digest = hashlib.sha256(content).hexdigest()
    (folder / _file_of(digest)).write_bytes(content)
    return digest


def _file_of(digest: str) -> str:
    return f"pictures/{digest[:16]}.png"


def _filed(written: Future[str], record: Record) -> Record:
    digest = written.result()
    return replace(record, sha256=digest, file=_file_of(digest))


def told_of(volume: Volume, cut: Cut, group: str) -> dict[str, Any]:
    """What `volumes.json` has of a volume: what it takes to put a picture's pixels back into it."""
    return {
        "group": group,
        "modality": volume.modality,
        "shape": volume.grid.shape,
        "affine": volume.grid.affine.round(6).tolist(),
        "pixel": cut.pixel,
        "step": volume.grid.spacing[cut.view.axis],
        "axis": cut.view.axis,
        "swap": cut.view.swap,
        "flip": cut.view.flip,
        "box": cut.box,
        "windows": [window.model_dump() for window in cut.windows],
    }
