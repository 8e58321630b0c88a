"""Pictures in folders: class folders, with or without folders of splits above them."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cones.common.errors import DataError
from cones.data.folders import entries, is_hidden, pictures_in, subfolders
from cones.data.listing import Listed, Listing
from cones.data.pictures import SUFFIXES
from cones.data.prepared import Record
from cones.data.settings import FolderData
from cones.data.splits import SPLIT_NAMES, split_names

LONGEST_SUFFIX = 10
RENAME = "A class with the name of a split has to be renamed"


def list_folder(config: FolderData) -> Listing:
    """The classes and pictures of a folder.

    Pictures of no class folder are reported as `not_listed`, and so is a folder of pictures beside those of splits;
    where a split is missing that is refused, as it may be the one. `DataError` also for what `split_folders` refuses.
    """
    source = Path(config.source)
    roots, classes = split_folders(source), class_folders(source)
    report: dict = {"not_pictures": [], "not_listed": []}
    listed = [p for split, root in roots.items() for p in _pictures(root, classes, source, split, report)]
    loose = [p for root in roots.values() for p in pictures_in(root, below=False)]
    splits = tuple(split for split in roots if split)
    beside = [p for p in subfolders(source) if p not in roots.values() and pictures_in(p)] if splits else []
    report["not_listed"] += [p.relative_to(source).as_posix() for p in [*beside, *loose]]
    listing = Listing(classes, listed, report, splits)
    if beside and listing.divided:
        raise DataError(
            f"{source} has {', '.join(p.name for p in roots.values())} and, beside them, pictures in "
            f"{', '.join(p.name for p in beside)}; call the folder of each split train, val or test, or move out what "
            f"is none: what is missing comes off train. {RENAME}"
        )
    return listing


def split_folders(source: Path) -> dict[str, Path]:
    """The folders of the splits that there are; the folder itself, under an empty name, where there are none.

    `valid` and the like are splits (`SPLIT_NAMES`) beside a `train`, and else classes; capitals do not count.
    `DataError` for two folders of one split, and for `val` or `test` without `train`.
    """
    if not os.path.isdir(source):
        raise DataError(f"{source} is not a folder; `source` must name a folder of class folders")
    names = [p.name for p in subfolders(source)]
    small = {name.lower() for name in names}
    if not small & {"val", "test"} and all(SPLIT_NAMES.get(name) != "train" for name in small):
        return {"": source}
    try:
        return {split: source / name for split, name in split_names(names, str(source)).items()}
    except DataError as error:
        raise DataError(f"{error}. {RENAME}") from None


def class_folders(source: Path) -> list[str]:
    """The names of the class folders, in all splits together."""
    return sorted({p.name for root in split_folders(source).values() for p in subfolders(root)})


def _pictures(root: Path, classes: list[str], source: Path, split: str, report: dict) -> Iterator[Listed]:
    for label, name in enumerate(classes):
        for path in entries(root / name):
            where = path.relative_to(source).as_posix()
            if path.is_dir() or is_hidden(path.relative_to(root)):
                continue
            if path.suffix.lower() not in SUFFIXES:
                report["not_pictures"].append(where)
                continue
            yield Listed(where, path, label, split)


def copy_pictures(pictures: list[tuple[Record, Path]], folder: Path) -> list[Record]:
    """Copy pictures into a split's folder under the hash of their content; the records then name the copies."""
    target = folder / "pictures"
    target.mkdir(parents=True)
    records = []
    for record, path in pictures:
        suffix = path.suffix.lower()
        plain = len(suffix) <= LONGEST_SUFFIX and suffix[1:].isascii() and suffix[1:].isalnum()
        name = f"pictures/{record.sha256[:16]}{suffix if plain else ''}"
        shutil.copyfile(path, folder / name)
        records.append(replace(record, file=name))
    return records
