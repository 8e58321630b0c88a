"""How NIfTI files are laid out: a decathlon's dataset.json, nnU-Net's folders, BIDS."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cones.common.errors import DataError
from cones.common.reading import read_text
from cones.data.listing import inside
from cones.readers.volumes.headers import Shown
from cones.readers.volumes.scans import Scan, Scans
from cones.readers.volumes.settings import VolumeData
from cones.readers.volumes.volume import is_volume_file, stem

MASK = re.compile(r"(^|[_-])(mask|dseg|seg|label|lesions?|roi)([_-]|$)", re.IGNORECASE)
"""What the name of a BIDS mask has."""
CASE = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")


def decathlon_scans(config: VolumeData, files: list[Path], shown: Shown) -> Scans:
    source = Path(config.source)
    content = dataset(source)
    listed = content.get("training")
    if not isinstance(listed, list) or not all(isinstance(e, dict) and {"image", "label"} <= e.keys() for e in listed):
        raise DataError("dataset.json needs `training`, a list of {image, label}; correct it")
    scans = []
    for entry in listed:
        image, label = (_inside(source, str(entry[key]), shown) for key in ("image", "label"))
        for path in (image, label):
            if not path.is_file():
                raise DataError(f"{shown(path)} is named in dataset.json and is not there; add it, or take it out")
        scans.append(Scan(stem(image), stem(image), image, (label,), modality=_modality(content)))
    return Scans(scans, labels=_named(content, config))


def _inside(source: Path, name: str, shown: Shown) -> Path:
    try:
        return inside(source, name, "dataset.json")
    except DataError:
        raise DataError(
            f"{shown(source / name)}, which dataset.json names, lies outside {source}, or no file can be called so; "
            "only that folder is watched for changes: move the file into it, and correct dataset.json"
        ) from None


def nnunet_scans(config: VolumeData, files: list[Path], shown: Shown) -> Scans:
    source = Path(config.source)
    content = dataset(source) if (source / "dataset.json").exists() else {}
    found = Scans(labels=_named(content, config))
    for end, split in (("Tr", ""), ("Ts", "test")):
        images: dict[str, Path] = {}
        for path in files:
            match = CASE.match(stem(path)) if path.parent == source / f"images{end}" else None
            if match and is_volume_file(path) and int(match["channel"]) == config.channel:
                images[match["case"]] = path
        labels = {stem(p): p for p in files if p.parent == source / f"labels{end}" and is_volume_file(p)}
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


def bids_scans(config: VolumeData, files: list[Path], shown: Shown) -> Scans:
    source = Path(config.source)
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    for path in files:
        below = path.relative_to(source).parts
        subject = next((part for part in below if part.startswith("sub-")), None)
        if subject is None or not is_volume_file(path):
            continue
        case = stem(path)
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


def dataset(source: Path) -> dict[str, Any]:
    path = source / "dataset.json"
    try:
        content = json.loads(read_text(path, f"{source} has no dataset.json, which its layout needs"))
    except ValueError as error:
        raise DataError(f"dataset.json cannot be read as JSON: {error}; correct it") from None
    if not isinstance(content, dict):
        raise DataError("dataset.json must hold an object; correct it")
    return content


def _named(content: Mapping[str, Any], config: VolumeData) -> dict[int, str]:
    """`labels` of dataset.json, a value for a name (nnU-Net) or a name for a value (the decathlon), without 0; where
    files beside the labels give the classes (nnDetection), which count from 0, these are counted from 1."""
    labels, first = content.get("labels"), 1 if config.instances == "json" else 0
    if not isinstance(labels, dict):
        return {}
    pairs: Iterable[tuple[Any, Any]] = labels.items()
    if all(isinstance(value, int) for value in labels.values()):
        pairs = ((value, name) for name, value in pairs)
    try:
        return {int(value) + first: str(name) for value, name in pairs if int(value) + first}
    except (TypeError, ValueError):
        raise DataError(
            f"`labels` of dataset.json must give each class a whole number, got {str(labels)[:80]}; set `labels` here"
        ) from None


def _modality(content: Mapping[str, Any]) -> str:
    """CT or MR, as dataset.json says of its first channel."""
    told = content.get("modality") or content.get("channel_names") or {}
    first = str(next(iter(told.values()), "")) if isinstance(told, dict) else ""
    return "CT" if first.upper() == "CT" else "MR" if first else "unknown"
