"""How volumes and their labels are laid out on disk: DICOM, a decathlon's dataset.json, nnU-Net's folders, BIDS."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cones.common.errors import DataError
from cones.common.reading import read_text
from cones.data.folders import entries
from cones.data.listing import inside
from cones.readers.volumes.dicom import (
    Header,
    Series,
    Shown,
    read_header,
    read_headers,
    refuse_two_people,
    series_of,
    sorted_series,
)
from cones.readers.volumes.seg import segment_names, series_of_label
from cones.readers.volumes.settings import VolumeData
from cones.readers.volumes.volume import is_volume_file

SIGNS = {"decathlon": "dataset.json", "nnunet": "imagesTr", "bids": "dataset_description.json"}
"""What a layout is known by, in this order; DICOM by a file of it."""
MASK = re.compile(r"(^|[_-])(mask|dseg|seg|label|lesions?|roi)([_-]|$)", re.IGNORECASE)
"""What the name of a BIDS mask has."""
CASE = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")


@dataclass(frozen=True)
class Scan:
    """A volume as a data set lists it, with its labels. `name` and `patient` are raw, and never leave the reader."""

    name: str
    patient: str
    image: Path | Series
    labels: tuple[Path | Header, ...]
    split: str = ""
    modality: str = "unknown"


@dataclass
class Scans:
    """The volumes of a data set: those that can be used, what is told of the others, and what the layout says of the
    values of its label maps."""

    scans: list[Scan] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    unlabelled: int = 0
    labels: dict[int, str] = field(default_factory=dict)


def find_scans(config: VolumeData, shown: Shown) -> Scans:
    """The volumes that have labels, by the layout of `source`. `DataError` for a layout that nothing tells, and for
    an image or a label that its layout names and that is not there."""
    source = Path(config.source)
    files = [path for path in entries(source) if path.is_file() and not path.name.startswith(".")]
    layout = _layout(config, source, files, shown)
    return {"dicom": _dicom, "decathlon": _decathlon, "nnunet": _nnunet, "bids": _bids}[layout](config, files, shown)


def _layout(config: VolumeData, source: Path, files: list[Path], shown: Shown) -> str:
    if config.layout != "auto":
        return config.layout
    for layout, sign in SIGNS.items():
        if (source / sign).exists() and (layout != "decathlon" or "training" in _dataset(source)):
            return layout
    for path in files:
        try:
            if read_header(path, shown):
                return "dicom"
        except DataError:
            return "dicom"  # which is told when all are read
    raise DataError(
        f"{config.source} holds no DICOM, no dataset.json with `training`, no imagesTr and no BIDS; give the folder "
        "that does as `source`"
    )


def _dicom(config: VolumeData, files: list[Path], shown: Shown) -> Scans:
    headers = read_headers(files, shown)
    if not headers.pictures:
        raise DataError(
            f"none of the {len(files)} files of {config.source} is a DICOM picture that can be read: "
            f"{'; '.join(headers.unreadable[:3]) or 'they are of other kinds'}"
        )
    if config.group_by == "patient":
        refuse_two_people(headers.pictures, shown)
    found = Scans(refused=headers.unreadable)
    of_series: dict[str, list[Header]] = defaultdict(list)
    for header in headers.labels:
        of_series[series_of_label(header)].append(header)
    names: dict[str, None] = {}
    for files_of in series_of(headers.pictures, shown):
        uid = str(files_of[0].get("SeriesInstanceUID", "")) or str(files_of[0].path.parent)
        labels = of_series.pop(uid, [])
        if not labels:
            found.unlabelled += 1
            continue
        try:
            series = sorted_series(files_of, shown, config.phase)
            names |= {name: None for header in labels for name in segment_names(header, shown).values()}
        except DataError as error:
            found.refused.append(str(error))
            continue
        found.scans.append(Scan(uid, files_of[0].patient, series, tuple(labels), modality=files_of[0].modality))
    for headers_of in of_series.values():
        found.refused += [f"{shown(h.path)} is of a series that is not in `source`; add it" for h in headers_of]
    found.labels = dict(enumerate(sorted(names), 1))
    return found


def _decathlon(config: VolumeData, files: list[Path], shown: Shown) -> Scans:
    source = Path(config.source)
    content = _dataset(source)
    listed = content.get("training")
    if not isinstance(listed, list) or not all(isinstance(e, dict) and {"image", "label"} <= e.keys() for e in listed):
        raise DataError("dataset.json needs `training`, a list of {image, label}; correct it")
    scans = []
    for entry in listed:
        image, label = (inside(source, str(entry[key]), "dataset.json") for key in ("image", "label"))
        for path in (image, label):
            if not path.is_file():
                raise DataError(f"{shown(path)} is named in dataset.json and is not there; add it, or take it out")
        scans.append(Scan(_case(image), _case(image), image, (label,), modality=_modality(content)))
    return Scans(scans, labels=_named(content.get("labels")))


def _nnunet(config: VolumeData, files: list[Path], shown: Shown) -> Scans:
    source = Path(config.source)
    content = _dataset(source) if (source / "dataset.json").exists() else {}
    found = Scans(labels=_named(content.get("labels")))
    for end, split in (("Tr", ""), ("Ts", "test")):
        images: dict[str, Path] = {}
        for path in files:
            match = CASE.match(_case(path)) if path.parent == source / f"images{end}" else None
            if match and is_volume_file(path) and int(match["channel"]) == config.channel:
                images[match["case"]] = path
        labels = {_case(p): p for p in files if p.parent == source / f"labels{end}" and is_volume_file(p)}
        if end == "Ts" and not labels:
            found.unlabelled += len(images)
            continue
        _refuse_single(images, labels, shown, "an image", "a label")
        found.scans += [Scan(c, c, images[c], (labels[c],), split, _modality(content)) for c in sorted(images)]
    if any(scan.split for scan in found.scans):
        found.scans = [
            s if s.split else Scan(s.name, s.patient, s.image, s.labels, "train", s.modality) for s in found.scans
        ]
    return found


def _bids(config: VolumeData, files: list[Path], shown: Shown) -> Scans:
    source = Path(config.source)
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    for path in files:
        below = path.relative_to(source).parts
        subject = next((part for part in below if part.startswith("sub-")), None)
        if subject is None or not is_volume_file(path):
            continue
        case = _case(path)
        session = next((part for part in below if part.startswith("ses-")), "")
        key = f"{subject} {session}".strip()
        if below[0] == "derivatives":
            if MASK.search(case) and labels.setdefault(key, path) != path:
                raise DataError(f"{shown(path)} and {shown(labels[key])} are two masks of one image; keep one")
        elif config.suffix in (None, case.rsplit("_", 1)[-1]) and images.setdefault(key, path) != path:
            raise DataError(
                f"{shown(path)} and {shown(images[key])} are of one subject; say with `suffix` which is meant"
            )
    unlabelled = {key for key in images if key not in labels}
    _refuse_single({k: v for k, v in images.items() if k in labels}, labels, shown, "an image", "a mask")
    scans = [Scan(key, key.split()[0], images[key], (labels[key],), modality="MR") for key in sorted(labels)]
    return Scans(scans, unlabelled=len(unlabelled))


def _refuse_single(
    images: Mapping[str, Path], labels: Mapping[str, Path], shown: Shown, image: str, label: str
) -> None:
    for those, others, has, lacks in ((images, labels, image, label), (labels, images, label, image)):
        for case in sorted(those.keys() - others.keys()):
            raise DataError(f"{shown(those[case])} is {has} without {lacks}; add that, or take it out of `source`")


def _dataset(source: Path) -> dict[str, Any]:
    path = source / "dataset.json"
    try:
        content = json.loads(read_text(path, f"{source} has no dataset.json, which its layout needs"))
    except ValueError as error:
        raise DataError(f"dataset.json cannot be read as JSON: {error}; correct it") from None
    if not isinstance(content, dict):
        raise DataError("dataset.json must hold an object; correct it")
    return content


def _named(labels: Any) -> dict[int, str]:
    """`labels` of dataset.json, a value for a name (nnU-Net) or a name for a value (the decathlon), without 0."""
    if not isinstance(labels, dict):
        return {}
    pairs: Iterable[tuple[Any, Any]] = labels.items()
    if all(isinstance(value, int) for value in labels.values()):
        pairs = ((value, name) for name, value in pairs)
    try:
        return {int(value): str(name) for value, name in pairs if int(value)}
    except (TypeError, ValueError):
        raise DataError(
            f"`labels` of dataset.json must give each class a whole number, got {str(labels)[:80]}; set `labels` here"
        ) from None


def _modality(content: Mapping[str, Any]) -> str:
    """CT or MR, as dataset.json says of its first channel."""
    told = content.get("modality") or content.get("channel_names") or {}
    first = str(next(iter(told.values()), "")) if isinstance(told, dict) else ""
    return "CT" if first.upper() == "CT" else "MR" if first else "unknown"


def _case(path: Path) -> str:
    """The name of a file without what says its format."""
    return re.sub(r"(\.nii)?\.(gz|nii|mgz|mgh)$", "", path.name, flags=re.IGNORECASE)
