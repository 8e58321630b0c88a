"""Files from outside, read as what they are said to be: ordinary files of a bounded size.

`error` is what a file that cannot be used raises: its kind says whose file it is.
"""

import codecs
import io
import json
import os
import stat
from pathlib import Path
from typing import BinaryIO

from cones.common.errors import ConesError, DataError
from cones.common.escaping import printable

LARGEST = 4 * 2**30
"""Bytes that a list or an annotation has at most."""
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_file(
    path: Path,
    name: str | None = None,
    missing: str | None = None,
    largest: int = LARGEST,
    error: type[ConesError] = DataError,
) -> BinaryIO:
    """An ordinary file, open for reading, which messages call `name`, and whose lack they tell by `missing`.

    `error` for anything else, unopened: a pipe and a device may never end, nor begin; and for a file of more than
    `largest` bytes.
    """
    name = printable(name or str(path))
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            # What takes its place in between is not waited for either.
            stream = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
            status = os.fstat(stream.fileno())
            if stat.S_ISREG(status.st_mode) and status.st_size <= largest:
                return stream
            stream.close()
    except FileNotFoundError:
        nowhere = (
            f"{name} is a link to {printable(os.readlink(path))}, which does not exist" if path.is_symlink() else ""
        )
        raise error(nowhere or missing or f"{name} does not exist") from None
    except (OSError, ValueError) as fault:
        raise error(f"{name} cannot be read: {reason(fault)}") from None
    if stat.S_ISREG(status.st_mode):
        raise error(f"{name} has {status.st_size} bytes; at most {largest} are read")
    kind = KINDS.get(stat.S_IFMT(status.st_mode), "no ordinary file")
    raise error(f"{name} is {kind}, and a file is needed there; put one in its place, or take it away")


def reason(error: Exception) -> str:
    """Why a file cannot be used, without its name."""
    if isinstance(error, OSError):
        return (error.strerror or type(error).__name__).lower()
    return "no file can have that name" if isinstance(error, ValueError) else str(error)


def read_file(
    path: Path,
    name: str | None = None,
    missing: str | None = None,
    largest: int = LARGEST,
    first: int | None = None,
    error: type[ConesError] = DataError,
) -> bytes:
    """The content of an ordinary file, or its `first` bytes; `error` as `open_file` has it, and if it cannot be
    read so far."""
    with open_file(path, name, missing, largest, error) as stream:
        try:
            return stream.read(largest if first is None else first)
        except OSError as fault:
            raise error(f"{printable(name or str(path))} cannot be read: {reason(fault)}") from None


def read_text(
    path: Path, missing: str | None = None, largest: int = LARGEST, error: type[ConesError] = DataError
) -> str:
    """The text of a file in UTF-8, with or without a mark at its beginning; `error` if it is none."""
    try:
        text = read_file(path, None, missing, largest, error=error).decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise error(
            f"{printable(str(path))} cannot be read as text in UTF-8: {fault.reason} at byte {fault.start}; save it so"
        ) from None
    return io.StringIO(text, newline=None).read()  # with the line ends of any system


def read_lines(path: Path) -> list[str]:
    """The lines of a text file in UTF-8; `DataError` if it is none."""
    return read_text(path).splitlines()


def read_json_text(path: Path, missing: str | None = None) -> bytes | str:
    """JSON as pydantic reads it, of a file in UTF-8, UTF-16 or UTF-32, with or without a mark at its beginning."""
    content = read_file(path, missing=missing)
    encoding = json.detect_encoding(content)
    if encoding in ("utf-8", "utf-8-sig"):
        return content.removeprefix(codecs.BOM_UTF8)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        raise DataError(
            f"{printable(str(path))} cannot be read as JSON in {encoding.upper()}; save it in UTF-8"
        ) from None
