"""Pictures that a data set holds more than once, by their content: refused, left out or reduced to one."""

from collections.abc import Iterable
from pathlib import Path

from cones.common.errors import DataError
from cones.data.prepared import Record
from cones.data.settings import PictureData
from cones.data.splits import refuse_overlap

Kept = tuple[Record, Path]
"""A picture and its file."""
Splits = dict[str, list[Kept]]
Copies = list[tuple[str, Record]]
"""The records of one content, each with its split, in the order in which they have a right to stay."""

ORDER = ("test", "val", "train", "")
"""A picture of two splits stays in the first of these: what is measured on is not changed for what is learnt from."""


def distinct(found: Splits, config: PictureData, report: dict) -> Splits:
    """Each picture once, by the rules of `PictureData.duplicates`, so that no copies can be divided into two splits.

    What is left out goes to `report`: `duplicates` of a picture that stays, and `conflicting` ones, which have another
    class or other objects. Raises `DataError` for what the rules refuse.
    """
    contents: dict[str, Copies] = {}
    for split in (s for s in ORDER if s in found):
        for record, _ in found[split]:
            contents.setdefault(record.sha256, []).append((split, record))
    if config.duplicates == "refuse":
        way_out = ", or set `duplicates: keep_first`, which takes them out of training, or else out of validation"
        refuse_overlap({s: [record for record, _ in of] for s, of in found.items()}, way_out)
        _refuse(contents.values(), config.source)
    gone: set[int] = set()
    for copies in contents.values():
        first = copies[0]
        other = next((copy for copy in copies if _shown(copy) != _shown(first)), None)
        drop = other is not None and config.duplicates == "drop"
        for copy in copies if drop else copies[1:]:
            gone.add(id(copy[1]))
            against = other if other and drop and _shown(copy) == _shown(first) else first
            if _shown(copy) != _shown(against):
                report["conflicting"].append(f"{_name(copy)} and {_name(against)} are {_conflict(copy)}")
            else:
                report["duplicates"].append(f"{_name(copy)} is a copy of {_name(first)}")
    return {split: [(r, path) for r, path in of if id(r) not in gone] for split, of in found.items()}


def _refuse(contents: Iterable[Copies], source: str) -> None:
    """`DataError` for a picture that shows two things, and for one that counts twice in a given val or test."""
    lines = []
    for first, *copies in contents:
        for copy in copies:
            if _shown(copy) != _shown(first):
                lines.append(f"{_name(first)} and {_name(copy)} are {_conflict(copy)}")
            elif copy[0] in ("val", "test"):
                lines.append(f"{_name(copy)} is a copy of {_name(first)}, and would count twice")
    if lines:
        listed = "\n".join(f"  - {line}" for line in lines[:10])
        raise DataError(
            f"{len(lines)} copies of pictures of {source} cannot be used:\n{listed}\nremove all but one of each, or "
            "set `duplicates: drop` to leave out what has two labels, or `keep_first` to keep the first of each"
        )


def _shown(copy: tuple[str, Record]) -> tuple:
    return copy[1].label, copy[1].objects


def _name(copy: tuple[str, Record]) -> str:
    split, record = copy
    return f"{record.id} ({split})" if split else record.id


def _conflict(copy: tuple[str, Record]) -> str:
    return f"the same picture {'under two classes' if copy[1].objects is None else 'with different objects'}"
