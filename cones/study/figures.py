"""The figures of a study's summary, whatever its protocol measures."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

Figure = tuple[float, float | None]
"""A mean over seeds, and its standard deviation; None where it is one number for all of them."""


def about_of(summary: Mapping[str, Any]) -> dict[str, str]:
    """What was run, as text by name: all that a summary has beside figures and hashes of draws."""
    told = {name: value for name, value in summary.items() if not isinstance(value, Mapping)}
    return {name: ", ".join(map(str, v)) if isinstance(v, list) else str(v) for name, v in told.items()}


def figures_of(cells: Mapping[str, Any]) -> dict[str, Figure]:
    """Each figure of a method at a number of shots, as `summary.json` has it; a dot stands before a name within."""
    return dict(_figures(cells, ""))


def _figures(of: Mapping[str, Any], path: str) -> Iterator[tuple[str, Figure]]:
    for name, value in of.items():
        if isinstance(value, Mapping) and "mean" in value:
            yield path + name, (float(value["mean"]), float(value["std"]) if "std" in value else None)
        elif isinstance(value, Mapping):
            yield from _figures(value, f"{path}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield path + name, (float(value), None)


def numbers_of(line: Mapping[str, str]) -> dict[str, float]:
    """The columns of a line of `results.csv` that hold a number."""
    return {name: value for name, text in line.items() if (value := _number(text)) is not None}


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
