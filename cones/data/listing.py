"""Pictures with labels, wherever their list comes from: read, checked, counted and divided by one set of rules."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cones.config import PictureData
from cones.data.pictures import open_picture
from cones.data.prepared import SPLITS, Record
from cones.data.splits import divide
from cones.errors import DataError
from cones.files import file_hash

Splits = dict[str, list[tuple[Record, Path]]]


@dataclass(frozen=True)
class Listed:
    """A picture as a data set lists it: its name there, its file, its class, and its split where it has one."""

    id: str
    path: Path
    label: int
    split: str = ""


@dataclass(frozen=True)
class Listing:
    """A data set as it is listed, nothing opened yet: its classes, its pictures, and what is to be reported of it."""

    classes: list[str]
    pictures: list[Listed]
    report: dict


def gather(listing: Listing, config: PictureData) -> tuple[Splits, dict]:
    """The readable pictures by split, and the report with what was left out.

    Pictures without a split are divided by the fractions of `config`. Raises `DataError` for a class without pictures
    in a split, a picture under two classes and, unless `unreadable: skip`, pictures that cannot be read.
    """
    classes = listing.classes
    if len(classes) < 2:
        raise DataError(f"{config.source} holds {len(classes)} classes; at least two are needed to tell apart")
    report = {**listing.report, "unreadable": [], "duplicates": []}
    found: Splits = {}
    for picture in listing.pictures:
        try:
            open_picture(picture.path, picture.id)
        except DataError as error:
            report["unreadable"].append(str(error))
            continue
        record = Record(picture.id, picture.label, file_hash(picture.path))
        found.setdefault(picture.split, []).append((record, picture.path))
    if report["unreadable"] and config.unreadable == "refuse":
        first = "\n".join(f"  - {line}" for line in report["unreadable"][:10])
        raise DataError(
            f"{len(report['unreadable'])} pictures of {config.source} cannot be used:\n{first}\n"
            "repair or remove them, or set `unreadable: skip` to leave them out and have them listed in the report"
        )
    splits = {s: found.get(s, []) for s in SPLITS}
    if "" in found:
        splits = _divide(_distinct(found[""], report), classes, config)
    for split, pictures in splits.items():
        counts = Counter(record.label for record, _ in pictures)
        empty = [name for label, name in enumerate(classes) if not counts[label]]
        if empty:
            raise DataError(
                f"the class `{empty[0]}` has no pictures in {split} of {config.source}; add some or remove the class"
            )
    return splits, report


def _distinct(pictures: list[tuple[Record, Path]], report: dict) -> list[tuple[Record, Path]]:
    """Each picture once, so that copies of one cannot fall into two splits; two classes for one picture are refused."""
    first: dict[str, tuple[Record, Path]] = {}
    for record, path in pictures:
        kept = first.setdefault(record.sha256, (record, path))[0]
        if kept.label != record.label:
            raise DataError(f"{kept.id} and {record.id} are the same picture under two classes; remove one")
        if kept is not record:
            report["duplicates"].append(f"{record.id} is a copy of {kept.id}")
    return list(first.values())


def _divide(pictures: list[tuple[Record, Path]], classes: list[str], config: PictureData) -> Splits:
    splits: Splits = {s: [] for s in SPLITS}
    for label in range(len(classes)):
        of_class = [p for p in pictures if p[0].label == label]
        rng = np.random.default_rng([config.seed, label])
        for picture, split in zip(of_class, divide(len(of_class), config.val_fraction, config.test_fraction, rng)):
            splits[split].append(picture)
    return splits
