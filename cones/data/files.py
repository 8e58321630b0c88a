"""Pictures in folders: class folders, with or without `train`, `val` and `test` above them."""

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from cones.config import FolderData
from cones.data.pictures import SUFFIXES, open_picture
from cones.data.prepared import SPLITS, Record
from cones.data.splits import divide
from cones.errors import DataError
from cones.files import file_hash


def read_folder(config: FolderData) -> tuple[tuple[str, ...], dict[str, list[tuple[Record, Path]]], dict]:
    """The classes of a folder, its readable pictures by split, and a report of what was left out.

    Raises `DataError` for a folder without class folders, a class without pictures in a split, a picture under two
    classes and, unless `unreadable: skip`, pictures that cannot be read.
    """
    source = Path(config.source)
    if not source.is_dir():
        raise DataError(f"{source} is not a folder; `source` must name a folder of class folders")
    given = [s for s in SPLITS if (source / s).is_dir()]
    if given and len(given) < len(SPLITS):
        raise DataError(
            f"{source} has {', '.join(given)} but not {', '.join(set(SPLITS) - set(given))}; give all three or none"
        )
    roots = {s: source / s for s in given} or {"": source}
    classes = sorted({p.name for root in roots.values() for p in root.iterdir() if p.is_dir() and p.name[0] != "."})
    if len(classes) < 2:
        raise DataError(f"{source} holds {len(classes)} class folders; at least two are needed to tell apart")
    report: dict = {"unreadable": [], "duplicates": [], "not_pictures": []}
    found = {s: list(_pictures(root, classes, source, report)) for s, root in roots.items()}
    if report["unreadable"] and config.unreadable == "refuse":
        first = "\n".join(f"  - {line}" for line in report["unreadable"][:10])
        raise DataError(
            f"{len(report['unreadable'])} pictures of {source} cannot be used:\n{first}\n"
            "repair or remove them, or set `unreadable: skip` to leave them out and have them listed in the report"
        )
    splits = found if given else _divide(_distinct(found[""], report), classes, config)
    for split, pictures in splits.items():
        counts = Counter(record.label for record, _ in pictures)
        empty = [name for label, name in enumerate(classes) if not counts[label]]
        if empty:
            raise DataError(
                f"the class `{empty[0]}` has no pictures in {split} of {source}; add some or remove the class"
            )
    return tuple(classes), splits, report


def _pictures(root: Path, classes: list[str], source: Path, report: dict) -> Iterator[tuple[Record, Path]]:
    for label, name in enumerate(classes):
        folder = root / name
        for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
            where = path.relative_to(source).as_posix()
            if path.is_dir() or path.name.startswith("."):
                continue
            if path.suffix.lower() not in SUFFIXES:
                report["not_pictures"].append(where)
                continue
            try:
                open_picture(path, where)
            except DataError as error:
                report["unreadable"].append(str(error))
                continue
            yield Record(where, label, file_hash(path)), path


def _distinct(pictures: list[tuple[Record, Path]], report: dict) -> list[tuple[Record, Path]]:
    """Each picture once, so that copies of one cannot fall into two splits; two classes for one picture are refused."""
    first: dict[str, tuple[Record, Path]] = {}
    for record, path in pictures:
        kept = first.setdefault(record.sha256, (record, path))[0]
        if kept.label != record.label:
            raise DataError(f"{kept.id} and {record.id} are the same picture under two classes; remove one")
        if kept.id != record.id:
            report["duplicates"].append(f"{record.id} is a copy of {kept.id}")
    return list(first.values())


def _divide(
    pictures: list[tuple[Record, Path]], classes: list[str], config: FolderData
) -> dict[str, list[tuple[Record, Path]]]:
    splits: dict[str, list[tuple[Record, Path]]] = {s: [] for s in SPLITS}
    for label in range(len(classes)):
        of_class = [p for p in pictures if p[0].label == label]
        rng = np.random.default_rng([config.seed, label])
        for picture, split in zip(of_class, divide(len(of_class), config.val_fraction, config.test_fraction, rng)):
            splits[split].append(picture)
    return splits


def copy_pictures(pictures: list[tuple[Record, Path]], folder: Path) -> list[Record]:
    """Copy pictures into a split's folder under the hash of their content; the records then name the copies."""
    target = folder / "pictures"
    target.mkdir(parents=True)
    records = []
    for record, path in pictures:
        name = f"pictures/{record.sha256[:16]}{path.suffix.lower()}"
        shutil.copyfile(path, folder / name)
        records.append(replace(record, file=name))
    return records
