"""A data set of volumes as splits of pictures: whole patients divided, slices chosen, lesions marked in them."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from cones.common.errors import DataError
from cones.common.files import write_json
from cones.data.identity import Pseudonyms
from cones.data.objects import Findings
from cones.data.prepared import SPLITS, VOLUMES, Record
from cones.readers.volumes.cut import Cut, cut_of
from cones.readers.volumes.geometry import View
from cones.readers.volumes.layouts import find_scans
from cones.readers.volumes.marked import MarkedVolume, divide_volumes, mark_volume, shown_by
from cones.readers.volumes.pixels import own_window
from cones.readers.volumes.series import Series
from cones.readers.volumes.settings import VolumeData
from cones.readers.volumes.shown import Patch, SmallLesions, objects_in, patches_of, slices_with
from cones.readers.volumes.volume import Volume

if TYPE_CHECKING:
    from cones.data.settings import Written

READ = {"window", "channels", "slices", "crop", "patch", "volume_index", "frame", "phase"}
"""Settings by which a new volume is cut as those that were searched on."""
MOST_TOLD = 10


@dataclass
class Writer:
    """Writes the pictures of one split."""

    config: VolumeData
    folder: Path
    split: str
    small: SmallLesions
    records: list[Record] = field(default_factory=list)
    volumes: dict[str, Any] = field(default_factory=dict)

    def add(self, marked: MarkedVolume, group: str, number: int) -> None:
        """Write the pictures of a volume, the `number`-th of its data set."""
        own = own_window(marked.scan.image.first) if isinstance(marked.scan.image, Series) else None
        view = View.of(marked.volume.grid, self.config.slices.axis)
        strided = view.strided(marked.volume.grid, self.config.slices.stride)
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


def write_volumes(config: VolumeData, folder: Path, names: Pseudonyms) -> "Written":
    """Cut the volumes of a data set into pictures; see `DataSettings.write`.

    The report also has the `volumes` of each split, how many were `unlabelled`, and the lesions that were `too_small`
    in a slice. `names` makes the pseudonyms that all of it has. Raises `DataError` for what cannot be
    used, by its pseudonym.
    """
    shown = shown_by(names)
    found = find_scans(config, shown)
    labels = config.labels or found.labels
    if not labels:
        raise DataError(f"{config.source} does not say what its label values stand for; set `labels`: {{1: lesion}}")
    classes = tuple(labels[value] for value in sorted(labels))
    values = {value: index for index, value in enumerate(sorted(labels))}
    refused, volumes = found.refused, list[MarkedVolume]()
    for scan in found.scans:
        try:
            volumes.append(mark_volume(config, scan, labels, values, names))
        except DataError as error:
            refused.append(str(error))
    if refused and config.unreadable == "refuse":
        listed = "\n".join(f"  - {line}" for line in refused[:MOST_TOLD])
        raise DataError(
            f"{len(refused)} files or volumes of {config.source} cannot be used:\n{listed}\nrepair or remove them, or "
            "set `unreadable: skip` to leave them out and have them listed in the report"
        )
    splits = divide_volumes(config, volumes, classes, names)
    small, records, counts = SmallLesions(), dict[str, list[Record]](), dict[str, int]()
    numbers = {m.name: i for i, m in enumerate(sorted(volumes, key=lambda m: m.scan.name))}
    for split in SPLITS:
        (folder / split / "pictures").mkdir(parents=True)
        writer = Writer(config, folder / split, split, small)
        for marked in splits[split]:
            group = names.of(config.group_of(marked.scan.patient, marked.scan.name))
            try:
                writer.add(marked, group, numbers[marked.name])
            except DataError as error:
                if config.unreadable == "refuse":
                    raise
                refused.append(str(error))
            marked.volume = None  # type: ignore[assignment]  # which may be large
        records[split], counts[split] = writer.records, len(writer.volumes)
        write_json(folder / split / VOLUMES, writer.volumes)
    _refuse_missing(records, classes, config)
    report = {
        "volumes": counts,
        "unlabelled": found.unlabelled,
        "unreadable": refused,
        "too_small": small.lines,
        "reading": reading_of(config, labels, volumes),
        "divided": [s for s in ("val", "test") if not any(m.scan.split == s for m in volumes)],
    }
    if config.patch is None:
        report["objects"] = Findings().report(records, classes)
    return classes, records, report


def reading_of(config: VolumeData, labels: Mapping[int, str], volumes: Sequence[MarkedVolume]) -> dict[str, Any]:
    """How new volumes are cut like those of a data set, the value that each class has in a label map, and the modality
    of most of them."""
    settings = config.model_dump(mode="json", include=READ, exclude_defaults=True)
    settings["modality"] = Counter(marked.scan.modality for marked in volumes).most_common(1)[0][0]
    return settings | {"labels": {str(value): name for value, name in labels.items()}}


def _refuse_missing(records: Mapping[str, Sequence[Record]], classes: Sequence[str], config: VolumeData) -> None:
    for split, of in records.items():
        counts = Counter(label for record in of for label in record.labels)
        for label, name in enumerate(classes):
            if not counts[label]:
                raise DataError(
                    f"the class `{name}` is not seen in {split} of {config.source}; add patients who have it, make "
                    "`least` smaller, set another `seed`, or take the class out of `labels`"
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
