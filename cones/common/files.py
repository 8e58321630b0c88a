"""Files and folders that appear whole or not at all, and their content hashes."""

import csv
import errno
import glob
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cones.common.errors import DAMAGED, DataError
from cones.common.escaping import one_line

if TYPE_CHECKING:
    from PIL.Image import Image

NAMELESS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""Errors of writing to a file that is open, which name none."""


@contextmanager
def fresh_folder(target: Path) -> Iterator[Path]:
    """A temporary sibling to fill; it takes `target`'s place when the block ends well, else it is removed.

    What `target` was stays until then. Those that killed processes left are removed, too.
    """
    temporary, before = temporary_of(target), temporary_of(target, "before")
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        if left in (temporary, before) or not is_running(left.suffixes[-2][1:]):
            shutil.rmtree(left, ignore_errors=True)
    try:
        with _told_of(target, temporary):
            temporary.mkdir(parents=True)
            yield temporary
            if target.is_dir():
                target.rename(before)
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if before.exists() and not target.exists():
            before.rename(target)
        shutil.rmtree(before, ignore_errors=True)


def is_running(pid: str) -> bool:
    import psutil

    return pid.isdecimal() and psutil.pid_exists(int(pid))


@contextmanager
def fresh_file(target: Path) -> Iterator[Path]:
    """A temporary sibling to write; it replaces `target` when the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(target)
    try:
        with _told_of(target, temporary):
            yield temporary
            temporary.replace(target)
    finally:
        with suppress(OSError):
            temporary.unlink()


def temporary_of(target: Path, which: str = "") -> Path:
    """A hidden sibling of this process, by which what it leaves is known (`cones.cli.clean`)."""
    return target.with_name(f".{target.name}.{which}{'.' * bool(which)}{os.getpid()}.tmp")


@contextmanager
def _told_of(target: Path, temporary: Path) -> Iterator[None]:
    """Let an error of the system name what was to be written, and not what stands for it meanwhile."""
    try:
        yield
    except OSError as error:
        names = [n for n in (error.filename2, error.filename) if isinstance(n, str)]
        named = [n for n in names if Path(n).is_relative_to(temporary)]
        if named or (not names and error.errno in NAMELESS):
            error.filename = str(target / Path(named[0]).relative_to(temporary)) if named else str(target)
            error.filename2 = None
        raise


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """Write JSON, as a person can read it unless `indent` is None, whole or not at all."""
    with fresh_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")


def write_picture(path: Path, picture: "Image", kind: str = "JPEG", **how: Any) -> None:
    """Write a picture; `how` is Pillow's. As bytes, since Pillow's own writing cuts a JPEG off on a full disk in
    silence."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **how)
    path.write_bytes(buffer.getvalue())


@contextmanager
def reading(path: Path, way_out: str = DAMAGED) -> Iterator[None]:
    """Tell what no sense can be made of in a file of our own as damage of it: a `DataError` with the way out.

    For blocks that only read and take apart what they read.
    """
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path} is missing; {way_out}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, EOFError, csv.Error) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise DataError(f"{path} is damaged ({one_line(what, 160)}); {way_out}") from error


def read_json(path: Path, shape: Any = Any, way_out: str = DAMAGED, at: str | None = None) -> Any:
    """What a JSON file holds, or what stands `at` a name in it, of a `shape` as pydantic has it; `DataError` for any
    other content, with the way out.

    What is given back is as it was written: no whole number becomes another kind of number.
    """
    from pydantic import TypeAdapter

    with reading(path, way_out):
        content = json.loads(path.read_text(encoding="utf-8"))
        content = content if at is None else content[at]
        TypeAdapter(shape).validate_python(content, strict=True)
    return content


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


def written_path(path: Path) -> str:
    """A path as text of valid UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
