"""Folders whose parts are known by their hashes, and which of those parts are what was written.

Hashing a large cache takes longer than many a search on it. So a file beside the parts remembers how their files stood
(size, times, inode) when they were last found sound; any write to one of them, and any copy of it, stands otherwise.
"""

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cones.common.errors import DataError
from cones.common.files import path_hash, read_json, write_json

NOTE = "verified.json"


def hash_parts(folder: Path, parts: Iterable[str]) -> dict[str, str]:
    """SHA-256 of each part, a file or a folder in `folder`, remembered as that of a sound one."""
    hashes = {part: path_hash(folder / part) for part in parts}
    _remember(folder, {part: _standing(folder / part, sha256) for part, sha256 in hashes.items()})
    return hashes


def damaged_parts(folder: Path, hashes: Mapping[str, str], thorough: bool = False) -> list[str]:
    """The parts that are missing, or whose SHA-256 is not that in `hashes`.

    A part whose files stand as they did when it was found sound is not read, unless `thorough`, which notices what
    changed without a write, too, and remembers nothing.
    """
    before = {} if thorough else _remembered(folder)
    sound: dict[str, Any] = {}
    for part, written in hashes.items():
        standing = _standing(folder / part, written)
        if standing["files"] and (standing == before.get(part) or path_hash(folder / part) == written):
            sound[part] = standing
    if not thorough and sound != before:
        # What was written to while it was read is sound now, but stands otherwise and is read again.
        _remember(folder, sound)
    return [part for part in hashes if part not in sound]


def _standing(path: Path, sha256: str) -> dict[str, Any]:
    files = sorted(p for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file())
    stats = {p.relative_to(path).as_posix(): p.stat() for p in files}
    standing = {name: [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for name, s in stats.items()}
    return {"sha256": sha256, "files": standing}


def _remembered(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / NOTE, dict)
    except (OSError, DataError):
        return {}


def _remember(folder: Path, sound: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):  # a disk that takes no note costs reading the parts again
        write_json(folder / NOTE, sound)
