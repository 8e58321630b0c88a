"""Pictures listed in a CSV table."""

import csv
import io
from collections import Counter
from itertools import zip_longest
from pathlib import Path
from typing import ClassVar, Literal

from cones.common.errors import DataError
from cones.common.escaping import quoted, shortened
from cones.common.messages import nearest
from cones.common.reading import read_text
from cones.common.settings import PathName
from cones.data.listing import Listed, Listing, inside
from cones.data.prepared import SPLITS
from cones.data.settings import PictureData
from cones.data.splits import split_names


class TableData(PictureData):
    """A folder with a CSV table of its pictures: columns `path` (from the folder), `label` and, if wanted, `split`."""

    groups_named: ClassVar[str] = "a column of the table"
    kind: Literal["csv"]
    table: PathName = "labels.csv"
    """The CSV, by its path from `source`."""

    def listing(self) -> Listing:
        return list_table(self)


def list_table(config: TableData) -> Listing:
    """The classes and pictures of a CSV with the columns `path`, `label` and, if wanted, `split`.

    The column may lack `val` or `test`, or say `valid`; `DataError` for one without `train`, and for an empty place.
    """
    source = Path(config.source)
    column = config.group_by if isinstance(config.group_by, str) else None
    lines = _lines(inside(source, config.table, "`table`"), column)
    classes = sorted({line["label"] for _, line in lines})
    label_of = {name: label for label, name in enumerate(classes)}
    written = split_names((line.get("split", "") for _, line in lines), f"the column `split` of {config.table}")
    splits = {name: split for split, name in written.items()}
    listed: list[Listed] = []
    names: set[str] = set()
    for number, line in lines:
        where = f"line {number} of {config.table}"
        if "split" in line and line["split"] not in splits:
            raise DataError(
                f"the split in {where} must be one of {', '.join(SPLITS)}, got {shortened(line['split'])}; without the "
                "column `split` the pictures are divided at random"
            )
        split = splits.get(line.get("split", ""), "")
        path = inside(source, line["path"], where)
        if line["path"] in names and config.duplicates == "refuse":
            raise DataError(
                f"{where} names {quoted(line['path'])} once more; each picture stands in the table once, unless "
                "`duplicates` says which is kept"
            )
        names.add(line["path"])
        group = line[column] if column else ""
        listed.append(Listed(line["path"], path, label_of[line["label"]], split, group=group))
    return Listing(classes, listed, {})


def _lines(path: Path, group_by: str | None) -> list[tuple[int, dict[str, str]]]:
    text = read_text(path, f"there is no table {path}; `table` names a CSV in the folder `source`")
    try:
        reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
        columns = [c.strip() for c in next(reader, [])]
        missing = [c for c in ("path", "label") if c not in columns]
        if missing:
            raise DataError(
                f"{path} has no column `{missing[0]}`; it must be a comma-separated table whose first line names "
                f"the columns path, label and, if wanted, split; its first line is {shortened(','.join(columns))}"
            )
        if group_by is not None and group_by not in columns:
            raise DataError(
                f"{path} has no column {quoted(group_by)}, which `group_by` names{nearest(group_by, columns)}"
            )
        twice = next((c for c, count in Counter(columns).items() if c and count > 1), None)
        if twice is not None:
            raise DataError(f"{path} has two columns {quoted(twice)}; keep the one that counts, or rename the other")
        lines = [(reader.line_num, _line(values, columns, reader.line_num, path)) for values in reader if values]
    except csv.Error as error:
        raise DataError(
            f"line {reader.line_num} of {path} cannot be read as one of a CSV: {error}; correct it"
        ) from None
    for number, line in lines:
        if not (line["path"] and line["label"]):
            raise DataError(f"line {number} of {path} has no {'path' if not line['path'] else 'label'}; fill it in")
    return lines


def _line(values: list[str], columns: list[str], number: int, path: Path) -> dict[str, str]:
    """A line by its columns; `DataError` for one with more fields than there are columns."""
    if any(value.strip() for value in values[len(columns) :]):
        raise DataError(
            f"line {number} of {path} has {len(values)} fields, and the first line names {len(columns)}; put what "
            "holds a comma in double quotes"
        )
    return {c: value.strip() for c, value in zip_longest(columns, values[: len(columns)], fillvalue="") if c}
