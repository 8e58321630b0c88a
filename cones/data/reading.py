"""The files of a data set, read as what they are said to be: ordinary files of a bounded size."""

import codecs
import io
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, cast

from cones.errors import DataError
from cones.escaping import printable

LARGEST = 4 * 2**30
"""Bytes that a list or an annotation has at most."""
LARGEST_YAML = 4 * 2**20
DEEPEST_YAML = 50
"""The C library that composes YAML calls itself for each level, and ends the process when it runs out of stack."""
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_file(path: Path, name: str | None = None, missing: str | None = None, largest: int = LARGEST) -> BinaryIO:
    """An ordinary file, open for reading, which messages call `name`, and whose lack they tell by `missing`.

    `DataError` for anything else, unopened: a pipe and a device may never end, nor begin; and for a file of more than
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
        raise DataError(nowhere or missing or f"{name} does not exist") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{name} cannot be read: {reason(error)}") from None
    if stat.S_ISREG(status.st_mode):
        raise DataError(f"{name} has {status.st_size} bytes; at most {largest} are read")
    kind = KINDS.get(stat.S_IFMT(status.st_mode), "no ordinary file")
    raise DataError(f"{name} is {kind}, and a file is needed there; put one in its place, or take it away")


def reason(error: Exception) -> str:
    """Why a file cannot be used, without its name."""
    if isinstance(error, OSError):
        return (error.strerror or type(error).__name__).lower()
    return "no file can have that name" if isinstance(error, ValueError) else str(error)


def read_file(
    path: Path, name: str | None = None, missing: str | None = None, largest: int = LARGEST, first: int | None = None
) -> bytes:
    """The content of an ordinary file, or its `first` bytes; `DataError` as `open_file` has it, and if it cannot be
    read so far."""
    with open_file(path, name, missing, largest) as stream:
        try:
            return stream.read(largest if first is None else first)
        except OSError as error:
            raise DataError(f"{printable(name or str(path))} cannot be read: {reason(error)}") from None


def read_text(path: Path, missing: str | None = None, largest: int = LARGEST) -> str:
    """The text of a file in UTF-8, with or without a mark at its beginning; `DataError` if it is none."""
    try:
        text = read_file(path, missing=missing, largest=largest).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{printable(str(path))} cannot be read as text in UTF-8: {error.reason} at byte {error.start}; save it so"
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


def read_yaml(path: Path, missing: str | None = None) -> Any:
    """The content of a YAML; `DataError` for what is none, is larger or deeper than any list of classes, or refers to
    parts of itself, by which a few lines can stand for more than a memory holds."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    text, where = read_text(path, missing, LARGEST_YAML), printable(str(path))
    depth = 0
    try:
        for event in YAML(typ="safe").parse(text):
            kind = type(event).__name__
            depth += kind.endswith("StartEvent") - kind.endswith("EndEvent")
            if kind == "AliasEvent":
                raise DataError(f"{where} refers to a part of itself, by *{cast(Any, event).anchor}; write it out")
            if depth > DEEPEST_YAML:
                raise DataError(f"{where} is nested more than {DEEPEST_YAML} deep; write it flat")
        return YAML(typ="safe").load(text)
    except (YAMLError, ValueError, ArithmeticError, LookupError, AttributeError, TypeError) as error:
        raise DataError(f"{where} cannot be read as YAML: {' '.join(str(error).split())[:300]}") from None
