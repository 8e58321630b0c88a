"""Pseudonyms for names that may tell of a person, and the keys that lead back.

A pseudonym is 12 hex digits of the HMAC-SHA256 of a name under the project's salt: the same name has the same one in
all data of a project, and nobody without the salt can tell it from a guess. The salt and the keys stay on the machine:
neither git nor DVC takes them.
"""

import csv
import hmac
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from cones.common.cells import csv_cell
from cones.common.errors import DataError
from cones.common.escaping import printable
from cones.common.files import fresh_file, temporary_of
from cones.common.layout import KEYS, SALT
from cones.common.reading import read_text
from cones.data.prepared import Record

DIGITS = 12
SALT_BYTES = 32
OPEN = ("divided", "shared", "templates")
"""The lists of a report that name no picture."""


def project_salt(path: Path = SALT) -> bytes:
    """The salt of the project you stand in, made where there is none; `DataError` for a file that is none."""
    if not os.path.lexists(path):
        _make_salt(path)
    text = read_text(path, largest=1000).strip()
    if not re.fullmatch(f"[0-9a-f]{{{2 * SALT_BYTES}}}", text):
        raise DataError(
            f"{path} is no salt, {2 * SALT_BYTES} hex digits; put back the one that was there, or remove it: then a "
            "new one is made, and all pseudonyms change as data is prepared again"
        )
    return bytes.fromhex(text)


def _make_salt(path: Path) -> None:
    """Write a salt whole, unless another process was first."""
    temporary = temporary_of(path)
    try:
        with _private(temporary) as stream:
            stream.write(f"{secrets.token_hex(SALT_BYTES)}\n")
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def pseudonym(raw: str, salt: bytes) -> str:
    """What is written for a name."""
    return hmac.digest(salt, raw.encode("utf-8", "surrogatepass"), "sha256").hex()[:DIGITS]


@dataclass(frozen=True)
class Pseudonyms:
    """The pseudonyms of one data set, with the name that each stands for in `raw`."""

    salt: bytes
    raw: dict[str, str] = field(default_factory=dict)

    def of(self, name: str) -> str:
        """The pseudonym of a name; `DataError` for one that another name has."""
        found = pseudonym(name, self.salt)
        if self.raw.setdefault(found, name) != name:
            raise DataError(
                f"{printable(self.raw[found])} and {printable(name)} have one pseudonym, {found}; rename one of them"
            )
        return found


def concealed(
    splits: Mapping[str, Sequence[Record]], report: Mapping[str, Any], names: Pseudonyms
) -> tuple[dict[str, list[Record]], dict[str, Any]]:
    """Records and a report with pseudonyms for all that names a group, a picture or another file.

    A line of the report, which may name several, becomes the pseudonym of the line.
    """
    records = {split: [_concealed(record, names) for record in of] for split, of in splits.items()}
    return records, _lines(report, names)


def _concealed(record: Record, names: Pseudonyms) -> Record:
    return replace(record, id=names.of(record.id), group=None if record.group is None else names.of(record.group))


def _lines(report: Mapping[str, Any], names: Pseudonyms) -> dict[str, Any]:
    hidden = dict(report)
    for key, value in report.items():
        if isinstance(value, dict):
            hidden[key] = _lines(value, names)
        elif isinstance(value, list) and key not in OPEN:
            hidden[key] = [names.of(str(line)) for line in value]
    return hidden


def write_keys(name: str, raw: Mapping[str, str], folder: Path = KEYS) -> Path:
    """Write what each pseudonym of a data set stands for, for its owner's eyes alone, whole or not at all."""
    path = folder / f"{name}.csv"
    with fresh_file(path) as temporary, _private(temporary) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["pseudonym", "raw"])
        writer.writerows((key, csv_cell(raw[key])) for key in sorted(raw, key=raw.__getitem__))
    return path


@contextmanager
def keys_kept(name: str, names: Pseudonyms | None) -> Iterator[None]:
    """Write the keys of a data set once all is done, or has failed in words that have pseudonyms in them."""
    try:
        yield
    finally:
        if names is not None and names.raw:
            write_keys(name, names.raw)


def _private(path: Path) -> TextIO:
    """A new text file that its owner alone may read."""
    path.unlink(missing_ok=True)
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    return os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace", newline="")
