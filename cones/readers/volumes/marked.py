"""Volumes with their lesions, and the division of patients into splits."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cones.common.errors import DataError
from cones.common.escaping import printable
from cones.data.identity import Pseudonyms
from cones.data.listing import inside
from cones.data.prepared import SPLITS
from cones.data.settings import Pattern
from cones.data.splits import divide_shown
from cones.readers.volumes.headers import MAY_HAVE_TEXT, Header, Shown
from cones.readers.volumes.labelled import label_maps
from cones.readers.volumes.lesions import Lesion, lesions_of, whole_labels
from cones.readers.volumes.pixels import DicomPixels
from cones.readers.volumes.scans import Scan
from cones.readers.volumes.series import Series
from cones.readers.volumes.settings import VolumeData
from cones.readers.volumes.tables import column_of
from cones.readers.volumes.volume import SeriesVolume, Volume, open_file


@dataclass
class MarkedVolume:
    """A volume with its lesions."""

    scan: Scan
    name: str
    volume: Volume
    lesions: list[Lesion]


def shown_by(names: Pseudonyms) -> Shown:
    """How messages name files: by pseudonyms, and where a person looks on by their paths."""

    def shown(path: Path) -> str:
        pseudonym = names.of(str(path))
        return printable(str(path)) if sys.stderr.isatty() else f"file {pseudonym}"

    return shown


def mark_volume(config: VolumeData, scan: Scan, labels: Mapping[int, str], names: Pseudonyms) -> MarkedVolume:
    """A volume with its lesions; `DataError` for labels that do not fit it."""
    shown, name = shown_by(names), names.of(scan.name)
    if isinstance(scan.image, Series):
        _refuse_text(config, scan.image.first, names)
        volume: Volume = SeriesVolume(scan.image, DicomPixels(shown), config.frame)
    else:
        volume = open_file(scan.image, shown, config.volume_index, scan.modality)
    lesions: list[Lesion] = []
    for of in label_maps(config, scan, volume, labels, shown):
        array, whole = whole_labels(of.array, of.name), config.instances != "components"
        for lesion in lesions_of(array, of.classes, of.name, whole, of.corner, of.named_by):
            lesions.append(Lesion(len(lesions) + 1, lesion.label, lesion.corner, lesion.voxels))
    return MarkedVolume(scan, name, volume, lesions)


def _refuse_text(config: VolumeData, header: Header, names: Pseudonyms) -> None:
    told = header.get("BurnedInAnnotation")
    if config.burned_in == "refuse" and (told == "YES" or (told is None and header.modality in MAY_HAVE_TEXT)):
        why = (
            "says that its pixels have text"
            if told
            else f"does not say whether its pixels have text ({header.modality})"
        )
        raise DataError(
            f"{shown_by(names)(header.path)} {why}, which may be a name; look at it, then set `burned_in: checked`, or "
            "{blank: [[x, y, w, h]]} to make that part black"
        )


def groups_of(config: VolumeData, volumes: Sequence[MarkedVolume]) -> dict[str, str]:
    """The raw id by which each volume, by its pseudonym, is kept with others; empty where it has none.

    `DataError` for a volume that is not in the table whose column `group_by` names.
    """
    how = config.group_by
    if isinstance(how, Pattern):
        return {m.name: how.group_of(m.scan.name) for m in volumes}
    if how in (None, "patient"):
        return {m.name: m.scan.patient if how else m.scan.name for m in volumes}
    table = column_of(inside(Path(config.source), config.table, "`table`"), ("case",), how)
    found = {m.name: table.get(m.scan.name) or table.get(m.scan.patient, "") for m in volumes}
    lacking = [name for name, group in found.items() if not group]
    if lacking:
        raise DataError(
            f"{len(lacking)} of the {len(volumes)} volumes of {config.source} are not in the column `case` of "
            f"{config.table} ({', '.join(lacking[:3])}); add them, or take them out of `source`"
        )
    return found


def divide_volumes(
    config: VolumeData,
    volumes: Sequence[MarkedVolume],
    groups: Mapping[str, str],
    classes: Sequence[str],
    names: Pseudonyms,
) -> dict[str, list[MarkedVolume]]:
    """The volumes of each split, those of one of `groups` together."""
    nameless = [m for m in volumes if not groups[m.name]]
    if nameless:
        raise DataError(
            f"{len(nameless)} volumes of {config.source} have an empty patient id ({nameless[0].name}), so that "
            "nothing keeps one patient in one split; set `group_by: {pattern: ...}`, or `none` where each is a patient "
            "of its own"
        )
    given = {groups[m.name]: m.scan.split for m in volumes if m.scan.split}
    shown: dict[str, set[int]] = {}
    for m in volumes:
        if groups[m.name] not in given or given[groups[m.name]] == "train":
            shown.setdefault(groups[m.name], set()).update(lesion.label for lesion in m.lesions)
        if m.scan.split and given[groups[m.name]] != m.scan.split:
            raise DataError(f"the patient {names.of(groups[m.name])} is in two given splits; take it out of one")
    lacking = {
        s: f for s, f in (("val", config.val_fraction), ("test", config.test_fraction)) if s not in given.values()
    }
    if len(shown) < len(lacking) + 1:
        raise DataError(
            f"{config.source} has {len(shown)} patients to divide into {len(lacking) + 1} splits "
            f"({', '.join(['train', *lacking])}), and none is in two; add some, or set `group_by: none` where each "
            "volume is a patient of its own"
        )
    ids = sorted(shown)  # the raw ones, so that no pseudonym decides
    divided = divide_shown([shown[group] for group in ids], lacking, config.seed, len(classes))
    of_group = given | dict(zip(ids, divided))
    found: dict[str, list[MarkedVolume]] = {split: [] for split in SPLITS}
    for m in sorted(volumes, key=lambda m: (groups[m.name], m.scan.name)):
        found[of_group[groups[m.name]]].append(m)
    return found
