"""What lies in a folder: picture files and other folders, hidden ones aside."""

import os
from itertools import islice
from pathlib import Path
from typing import NoReturn

from cones.common.errors import DataError
from cones.common.escaping import printable
from cones.common.reading import reason
from cones.data.pictures import SUFFIXES, is_dicom
from cones.data.splits import SPLIT_NAMES, split_names

LOOKED_AT = 20
"""Files of a folder that are looked into for DICOM."""
RENAME = "A class with the name of a split has to be renamed"


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


def is_hidden(path: Path) -> bool:
    """Whether a path, from the folder of a data set, is that of a hidden file or leads through a hidden folder."""
    return any(part[0] == "." for part in path.parts)


def entries(folder: Path, below: bool = True) -> list[Path]:
    """All that lies in a folder, folders too, sorted, and if wanted in those below it, but for linked ones; nothing if
    there is no folder. `DataError` for a folder that cannot be looked into, as what is in it would be lost unseen."""

    def refuse(error: OSError) -> NoReturn:
        raise DataError(
            f"the folder {printable(str(error.filename))} cannot be looked into: {reason(error)}; change its "
            "permissions, or take it away"
        )

    if not os.path.isdir(folder):
        return []
    found: list[Path] = []
    for root, folders, files in os.walk(folder, onerror=refuse):
        found += [Path(root, name) for name in (*folders, *files)]
        if not below:
            break
    return sorted(found)


def pictures_in(folder: Path, below: bool = True) -> list[Path]:
    """The picture files of a folder, sorted, and if wanted those in the folders below it; none if there is no folder.

    A link to nowhere is among them, and a pipe, for whoever opens it to name.
    """
    there = (p for p in entries(folder, below) if p.suffix.lower() in SUFFIXES and not p.is_dir())
    return [p for p in there if not is_hidden(p.relative_to(folder))]


def holds_dicom(folder: Path) -> bool:
    """Whether one of the first files of a folder, and of those below it, is DICOM; hidden ones are passed over."""
    files = (p for p in entries(folder) if p.is_file() and p.name[0] != ".")
    return any(is_dicom(path) for path in islice(files, LOOKED_AT))


def files_in(folder: Path, suffix: str, below: bool = False) -> list[Path]:
    """What a folder has of one suffix and is no folder, sorted, likewise; hidden ones too."""
    return [p for p in entries(folder, below) if p.suffix == suffix and not p.is_dir()]


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted; none if there is no folder."""
    return [p for p in entries(folder, below=False) if p.is_dir() and p.name[0] != "."]
