"""What a report is made of. A task brings a `TaskReport`; the page knows nothing else of tasks."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cones.common.cells import csv_text
from cones.common.errors import DAMAGED, DataError
from cones.common.files import reading


@dataclass(frozen=True)
class Table:
    """Rows of text under column heads. `shade` gives each cell after the first a share in 0..1 to colour it by."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str
    shade: Sequence[Sequence[float]] | None = None
    kind: str = "table"


@dataclass(frozen=True)
class Chart:
    """A drawing as SVG text, from `cones.visuals.charts`."""

    title: str
    svg: str
    note: str
    kind: str = "chart"


@dataclass(frozen=True)
class Card:
    """A picture (JPEG or PNG bytes) over lines of text; a line is told to be right, wrong or neither (None)."""

    image: bytes
    lines: Sequence[tuple[str, bool | None]]


@dataclass(frozen=True)
class Gallery:
    """Pictures with what is said about them; `wide` ones need room for what is drawn into them."""

    title: str
    cards: Sequence[Card]
    note: str
    wide: bool = False
    kind: str = "gallery"


Part = Table | Chart | Gallery


@dataclass(frozen=True)
class TaskReport:
    """How a task shows its results.

    `headline` is the metric that a row is praised by, `metrics` says of each one how it is measured, `curve` is the
    column of `curves.csv` to draw, and `parts(evaluated, rows, best)` makes the parts of a concept: from its folder of
    the evaluate stage, its rows in their order, and the row that is best on validation.
    """

    headline: str
    metrics: Mapping[str, str]
    curve: str
    parts: Callable[[Path, Sequence[str], str], list[Part]]


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The lines of a table that a stage wrote, their text as it is without what guards it; `DataError` for another."""
    with reading(path), path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        lines = list(table)
        if table.fieldnames is None or any(
            not isinstance(line.get(column), str) for line in lines for column in columns
        ):
            raise DataError(f"{path} is damaged (its columns are not {', '.join(columns)}); {DAMAGED}")
        return [{name: csv_text(line[name]) for name in columns} for line in lines]
