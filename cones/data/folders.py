"""What lies in a folder: picture files and other folders, hidden ones aside."""

from pathlib import Path

from cones.data.pictures import SUFFIXES


def is_hidden(path: Path) -> bool:
    """Whether a path, from the folder of a data set, is that of a hidden file or leads through a hidden folder."""
    return any(part[0] == "." for part in path.parts)


def pictures_in(folder: Path, below: bool = True) -> list[Path]:
    """The picture files of a folder, sorted, and if wanted those in the folders below it; none if there is no folder.

    A link to nowhere is among them, for whoever opens it to name.
    """
    there = (p for p in folder.glob("**/*" if below else "*") if p.suffix.lower() in SUFFIXES and not p.is_dir())
    return sorted(p for p in there if not is_hidden(p.relative_to(folder)))


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted; none if there is no folder."""
    return sorted(p for p in folder.glob("*") if p.is_dir() and p.name[0] != ".")
