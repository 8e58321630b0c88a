"""CSV tables beside volumes, by their columns."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from cones.common.errors import DataError
from cones.common.escaping import quoted
from cones.common.messages import nearest
from cones.common.reading import read_text


def column_of(path: Path, keys: Sequence[str], column: str) -> dict[str, str]:
    """What a table has in a column, by what it has in the first of the columns `keys` that is there.

    `DataError` for a table without them, for an empty place, and for two lines of one key, by the numbers of the lines:
    what stands there may tell of a person.
    """
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""), skipinitialspace=True, strict=True)
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        key = next((name for name in keys if name in columns), None)
        if key is None:
            raise DataError(f"{path.name} has no column {' or '.join(keys)}; it has {', '.join(columns) or 'none'}")
        if column not in columns:
            raise DataError(f"{path.name} has no column {quoted(column)}{nearest(column, columns)}")
        lines = [(reader.line_num, (line[key] or "").strip(), (line[column] or "").strip()) for line in reader]
    except csv.Error as error:
        raise DataError(f"{path.name} cannot be read as a CSV: {error}; correct it") from None
    first: dict[str, int] = {}
    for number, name, value in lines:
        if not (name and value):
            raise DataError(f"line {number} of {path.name} has no {column if name else key}; fill it in")
        if first.setdefault(name, number) != number:
            raise DataError(f"the lines {first[name]} and {number} of {path.name} are of one {key}; keep one")
    return {name: value for _, name, value in lines}
