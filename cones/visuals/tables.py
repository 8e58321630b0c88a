"""Tables for people."""

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from cones.common.cells import csv_cell


def write_csv(
    path: Path, columns: Sequence[str], lines: Iterable[Sequence[Any]], cell: Callable[[str], str] = csv_cell
) -> None:
    """A table for people, whose text no spreadsheet and no plot takes for anything else; numbers stay numbers."""
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        safe = ([cell(value) if isinstance(value, str) else value for value in line] for line in lines)
        csv.writer(file).writerows([columns, *safe])
