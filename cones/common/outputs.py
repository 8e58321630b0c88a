"""Whether what a command is to make can be written, asked before it is made."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from cones.common.errors import ConesError
from cones.common.escaping import plain
from cones.common.files import temporary_of


def refuse_unwritable(folder: Path, names: Iterable[str] = (), option: str = "--out") -> None:
    """`ConesError` where files of these names cannot be written to a folder, which need not be there yet.

    For what takes long to make: it is asked first, and nothing is made or changed by asking. `option` is what a person
    chose the place by.
    """
    there = next(p for p in (folder, *folder.parents) if os.path.lexists(p) or p == p.parent)
    if not os.path.isdir(there):
        _refuse(option, folder, f"{there} is there and is no folder")
    if os.statvfs(there).f_flag & os.ST_RDONLY:
        _refuse(option, folder, f"{there.resolve()} is on a read-only file system")
    if not os.access(there, os.W_OK | os.X_OK):
        _refuse(option, folder, f"this user may not write to {there.resolve()}")
    for path in (folder / name for name in names):
        if os.path.isdir(path):
            _refuse(option, path, "it is a folder, and a file is wanted")
        if os.path.exists(path) and not os.path.isfile(path):
            _refuse(option, path, "it is a device or a pipe, and a file is wanted")
        try:
            os.lstat(temporary_of(path))
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, ValueError) as error:
            _refuse(option, path, str(getattr(error, "strerror", error)).lower())


def _refuse(option: str, path: Path, why: str) -> NoReturn:
    raise ConesError(f"{option} {plain(str(path))} cannot be written: {why}; choose another place, or put that right")
