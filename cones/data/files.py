"""Pictures in folders: class folders, with or without `train`, `val` and `test` above them."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cones.config import FolderData
from cones.data.listing import Listed, Listing
from cones.data.pictures import SUFFIXES
from cones.data.prepared import SPLITS, Record
from cones.errors import DataError


def list_folder(config: FolderData) -> Listing:
    """The classes and pictures of a folder; `DataError` for one without class folders or with some splits only."""
    source = Path(config.source)
    roots, classes = split_folders(source), class_folders(source)
    report: dict = {"not_pictures": []}
    listed = [p for split, root in roots.items() for p in _pictures(root, classes, source, split, report)]
    return Listing(classes, listed, report)


def split_folders(source: Path) -> dict[str, Path]:
    """The folder of each split; the folder itself, under an empty name, where there are none."""
    if not source.is_dir():
        raise DataError(f"{source} is not a folder; `source` must name a folder of class folders")
    given = [s for s in SPLITS if (source / s).is_dir()]
    if given and len(given) < len(SPLITS):
        raise DataError(
            f"{source} has {', '.join(given)} but not {', '.join(set(SPLITS) - set(given))}; give all three or none"
        )
    return {s: source / s for s in given} or {"": source}


def class_folders(source: Path) -> list[str]:
    """The names of the class folders, in all splits together."""
    roots = split_folders(source).values()
    return sorted({p.name for root in roots for p in root.iterdir() if p.is_dir() and p.name[0] != "."})


def _pictures(root: Path, classes: list[str], source: Path, split: str, report: dict) -> Iterator[Listed]:
    for label, name in enumerate(classes):
        folder = root / name
        for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
            where = path.relative_to(source).as_posix()
            if path.is_dir() or path.name.startswith("."):
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
        name = f"pictures/{record.sha256[:16]}{path.suffix.lower()}"
        shutil.copyfile(path, folder / name)
        records.append(replace(record, file=name))
    return records
