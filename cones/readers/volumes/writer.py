"""The slices of volumes as pictures with what is marked in them: those of one split."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cones.common.errors import DataError
from cones.data.prepared import Record
from cones.readers.volumes.cut import Cut, cut_of
from cones.readers.volumes.geometry import View
from cones.readers.volumes.marked import MarkedVolume
from cones.readers.volumes.pixels import own_window
from cones.readers.volumes.series import Series
from cones.readers.volumes.settings import VolumeData
from cones.readers.volumes.shown import Patch, SmallLesions, objects_in, patches_of, slices_with
from cones.readers.volumes.volume import Volume


@dataclass
class Writer:
    """Writes the pictures of one split."""

    config: VolumeData
    folder: Path
    split: str
    small: SmallLesions
    records: list[Record] = field(default_factory=list)
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
        before = len(self.records)
        try:
            self._pictures(marked, group, cut, chosen)
        except DataError:
            for record in self.records[before:]:
                (self.folder / record.file).unlink(missing_ok=True)
            del self.records[before:]
            raise
        self.volumes[marked.name] = told_of(marked.volume, cut, group)

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

    def _pictures(self, marked: MarkedVolume, group: str, cut: Cut, chosen: Mapping[int, Sequence[Patch]]) -> None:
        for at, patches in sorted(chosen.items()):
            picture = cut.picture(marked.volume, at)
            for patch in patches:
                self._write(patch.of(picture, cut.box), f"{marked.name}-{at:04d}-{patch.number}", group,
                            marked.name, at, label=patch.label)  # fmt: skip
            if self.config.patch is None:
                objects = objects_in(marked.lesions, cut, marked.volume.grid, at, self.config.least, self.small)
                self._write(picture, f"{marked.name}-{at:04d}", group, marked.name, at, objects=objects, size=cut.size)

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

    def _write(self, picture: np.ndarray, name: str, group: str, volume: str, at: int, **more: Any) -> None:
        """A picture as PNG, in grey where its channels are one."""
        grey = picture[..., 0] if (picture[..., :1] == picture).all() else picture
        stream = BytesIO()
        Image.fromarray(grey).save(stream, "PNG", compress_level=1)
        digest = hashlib.sha256(stream.getvalue()).hexdigest()
        file = f"pictures/{digest[:16]}.png"
        (self.folder / file).write_bytes(stream.getvalue())
        self.records.append(
            Record(name, more.pop("label", -1), digest, file, group=group, volume=volume, slice=at, **more)
        )


def told_of(volume: Volume, cut: Cut, group: str) -> dict[str, Any]:
    """What `volumes.json` has of a volume: what it takes to put a picture's pixels back into it."""
    return {
        "group": group,
        "modality": volume.modality,
        "shape": volume.grid.shape,
        "affine": volume.grid.affine.round(6).tolist(),
        "pixel": cut.view.pixel(volume.grid),
        "step": volume.grid.spacing[cut.view.axis],
        "axis": cut.view.axis,
        "swap": cut.view.swap,
        "flip": cut.view.flip,
        "box": cut.box,
        "windows": [window.model_dump() for window in cut.windows],
    }
