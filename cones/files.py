"""Files and folders that appear whole or not at all, and their content hashes."""

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def fresh_folder(target: Path) -> Iterator[Path]:
    """A temporary sibling to fill; it takes `target`'s place when the block ends well, else it is removed.

    Those that killed processes left are removed, too.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        if left == temporary or not is_running(left.suffixes[-2][1:]):
            shutil.rmtree(left, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_running(pid: str) -> bool:
    import psutil

    return pid.isdecimal() and psutil.pid_exists(int(pid))


@contextmanager
def fresh_file(target: Path) -> Iterator[Path]:
    """A temporary sibling to write; it replaces `target` when the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(target)
    except OSError as error:
        error.filename = error.filename or str(target)  # a full disk names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """Write JSON, as a person can read it unless `indent` is None, whole or not at all."""
    with fresh_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_hash(folder: Path, files: Iterable[Path] | None = None) -> str:
    """SHA-256 over the names and contents of a folder's files (all of them, or those named), in hex."""
    chosen = sorted(p for p in (folder.rglob("*") if files is None else files) if p.is_file())
    return content_hash({p.relative_to(folder).as_posix(): file_hash(p) for p in chosen})


def path_hash(path: Path) -> str:
    """The hash of a file or of a folder."""
    return folder_hash(path) if path.is_dir() else file_hash(path)


def content_hash(content: Any) -> str:
    """SHA-256 of a JSON-able value, in hex; the order of mappings does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
