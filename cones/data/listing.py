"""Pictures with labels or objects, wherever they are listed: read, checked and divided by one set of rules."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cones.common.errors import DataError
from cones.common.escaping import is_blank, is_plain, printable, quoted, shortened
from cones.common.files import file_hash
from cones.data.duplicates import Kept, Splits, distinct
from cones.data.groups import refuse_few_groups, together, whole_groups
from cones.data.objects import Findings, Mark, settle
from cones.data.pictures import open_picture
from cones.data.prepared import SPLITS, Record
from cones.data.settings import ObjectData, PictureData
from cones.data.splits import divide_shown

LONGEST_CLASS = 250
"""Characters of a class's name; no text encoder reads as many."""
LONGEST_NAME, LONGEST_PATH = 255, 4000
"""Bytes of a file's name, and of its path from the data set's folder."""


@dataclass(frozen=True)
class Listed:
    """A picture as a data set lists it: its name there, its file, its class, and its split where it has one.

    In data for detection the class is -1, `marks` are its objects, and `size` its (height, width) where that is told.
    `group` is what it belongs to, by its name; empty where it stands for itself.
    """

    id: str
    path: Path
    label: int
    split: str = ""
    marks: tuple[Mark, ...] | None = None
    size: tuple[int, int] | None = None
    group: str = ""


@dataclass(frozen=True)
class Listing:
    """A data set as it is listed, nothing opened yet: its classes, its pictures, and what is to be reported of it."""

    classes: list[str]
    pictures: list[Listed]
    report: dict
    splits: tuple[str, ...] = ()
    """The splits it has of its own; empty: those that its pictures name."""

    @property
    def given(self) -> set[str]:
        """The splits it has of its own."""
        return set(self.splits) or {picture.split for picture in self.pictures if picture.split}

    @property
    def divided(self) -> tuple[str, ...]:
        """The splits it lacks, to be divided off its training pictures, or off all where it has no splits."""
        return tuple(split for split in ("val", "test") if split not in self.given)


def gather(listing: Listing, config: PictureData) -> tuple[Splits, dict]:
    """The readable pictures by split, `test` alone where the data set is for tests only, and the report with what was
    left out.

    Splits that the data set lacks are divided off its training pictures, or off all it has, by the fractions and the
    seed of `config`; the report names them in `divided`. Raises `DataError` for a class without pictures or objects in
    a split, copies that are refused (cones/data/duplicates.py), objects that are (cones/data/objects.py) and, unless
    `unreadable: skip`, pictures that cannot be read. Pictures that show no object are kept.
    """
    classes, detection = listing.classes, isinstance(config, ObjectData)
    wanted, divided = (("test",), ()) if config.tests_only else (SPLITS, listing.divided)
    if not classes or (len(classes) < 2 and not detection):
        least = "one is needed to find" if detection else "two are needed to tell apart"
        raise DataError(f"{config.source} holds {len(classes)} classes; at least {least}")
    report = {
        **listing.report,
        "divided": list(divided),
        "unreadable": [],
        "duplicates": [],
        "conflicting": [],
    }
    findings = Findings()
    found: Splits = {}
    for picture in listing.pictures:
        try:
            record = _record(picture, findings)
        except DataError as error:
            report["unreadable"].append(str(error))
            continue
        found.setdefault(picture.split, []).append((record, picture.path))
    if report["unreadable"] and config.unreadable == "refuse":
        first = "\n".join(f"  - {line}" for line in report["unreadable"][:10])
        raise DataError(
            f"{len(report['unreadable'])} pictures of {config.source} cannot be used:\n{first}\n"
            "repair or remove them, or set `unreadable: skip` to leave them out and have them listed in the report"
        )
    findings.refuse(config.source)
    for split in listing.given - set(found):
        remove = "" if split == "train" else f", or remove it, to have {split} divided off train"
        raise DataError(f"{split} of {config.source} has no picture that can be used; add some{remove}")
    splits = distinct(found, config, report)
    if divided:
        splits |= _divide(splits.pop("", []) + splits.get("train", []), classes, config, divided)
    splits = {s: splits[s] for s in wanted}
    for split, pictures in splits.items():
        counts = Counter(label for record, _ in pictures for label in record.labels)
        empty = [name for label, name in enumerate(classes) if not counts[label]]
        if empty:
            lacks = f"the class `{empty[0]}` has no {'objects' if detection else 'pictures'} in {split}"
            apart = whole_groups(classes.index(empty[0]), splits) if divided else ""
            raise DataError(f"{lacks} of {config.source}; {apart}add some or remove the class")
    if detection:
        report["objects"] = findings.report({s: [r for r, _ in splits[s]] for s in wanted}, classes)
    return splits, report


def inside(source: Path, name: str, where: str) -> Path:
    """A file of the data set's folder, which is what DVC watches; a link in it, made by a person, may lead anywhere.

    `DataError` for a name in an annotation that leads out of the folder, or that no file can have.
    """
    try:
        written = os.fsencode(name)
    except UnicodeEncodeError:
        written = b"\0"
    if b"\0" in written or len(written) > LONGEST_PATH or any(len(p) > LONGEST_NAME for p in written.split(b"/")):
        raise DataError(
            f"{quoted(name)} in {where} is a name that no file has: of {LONGEST_NAME} bytes at most, and without "
            "characters that UTF-8 has not; correct it"
        )
    below = os.path.relpath(os.path.abspath(source / name), os.path.abspath(source))
    if below == ".." or below.startswith("../"):
        raise DataError(
            f"{quoted(name)} in {where} lies outside {source}; only that folder is watched for changes: move the "
            "picture into it, or give a folder above both as `source`"
        )
    return source / below


def refuse_class_names(classes: Sequence[str], source: str) -> None:
    """Raise `DataError` for a class whose name no table, sentence or screen can show."""
    for name in classes:
        if is_blank(name) or len(name) > LONGEST_CLASS or not is_plain(name):
            raise DataError(
                f"{source} has a class called {shortened(name)}; a class's name is one line of UTF-8, of 1 to "
                f"{LONGEST_CLASS} characters, without control characters and what turns the direction of text: rename "
                "it"
            )


def refuse_repeats(pictures: Iterable[Listed], source: str) -> None:
    """Raise `DataError` when a picture is listed twice in one split, by its name."""
    counts = Counter((picture.split, picture.id) for picture in pictures)
    for (split, name), count in counts.items():
        if count > 1:
            where = f"{split} of {source}" if split else source
            raise DataError(f"the picture {quoted(name)} is listed {count} times in {where}; each stands there once")


def _record(picture: Listed, findings: Findings) -> Record:
    """What is kept of a picture; `DataError` if it cannot be read, or is not the picture that was annotated."""
    image = open_picture(picture.path, picture.id)
    sha256, group = file_hash(picture.path), picture.group or None
    if picture.marks is None:
        return Record(picture.id, picture.label, sha256, group=group)
    size = (image.height, image.width)
    if picture.size not in (None, size):
        raise DataError(
            f"{printable(picture.id)} has {size[1]} x {size[0]} pixels, turned as its EXIF orientation says, and its "
            f"annotation is for {shortened(picture.size[1])} x {shortened(picture.size[0])}"
        )
    objects = settle(picture.id, picture.marks, size, findings)
    return Record(picture.id, -1, sha256, objects=objects, size=size, group=group)


def _divide(pictures: Sequence[Kept], classes: list[str], config: PictureData, parts: Sequence[str]) -> Splits:
    """Divide `parts` off the pictures of each class, and of no class; a picture of several goes with its rarest.

    Where pictures have groups these are divided, whole and likewise: a group shows what its pictures show.
    """
    splits: Splits = {s: [] for s in ("train", *parts)}
    shares = {"val": config.val_fraction, "test": config.test_fraction}
    fractions = {part: shares[part] for part in parts}
    wholes = together(pictures)
    refuse_few_groups(wholes, list(splits), config.source)
    shown = [{label for record, _ in whole for label in record.labels} for whole in wholes]
    for whole, split in zip(wholes, divide_shown(shown, fractions, config.seed, len(classes))):
        splits[split] += whole
    return splits
