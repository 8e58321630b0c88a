"""Published figures beside measured ones: the lines of a table, and how they are shown."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from cones.study.averages import harmonic_mean

MEAN = "mean of 11"
"""What the mean over all data sets is called."""
Cell = tuple[str, int | str]
"""A method, and its shots, which zero-shot has none of, or the classes it is tested on: base, new, or H of both."""
Accuracies = dict[Cell, list[float]]
"""Test accuracies in percent, one a seed."""


@dataclass(frozen=True)
class Figure:
    """A published figure in percent, and where it stands."""

    value: float
    source: str


@dataclass(frozen=True)
class Gap:
    """By how many points a method is published to be better than another in the mean, and where that stands."""

    method: str
    other: str
    published: str
    source: str


Published = Mapping[tuple[str, str, int | str], Figure]
"""Figures by data set, method and the rest of a cell."""


def lines_of(measured: Mapping[str, Accuracies], published: Published, whole: bool) -> list[dict[str, Any]]:
    """A line for each data set and cell; those of the mean come last. Only with the `whole` of the data sets does it
    stand beside a published one. H is of the averages over data sets and seeds."""
    cells, called = list(next(iter(measured.values()))), MEAN if whole else f"mean of {len(measured)}"
    means = {cell: [mean(of_seed) for of_seed in zip(*(of[cell] for of in measured.values()))] for cell in cells}
    lines = []
    for name, of in (*measured.items(), (called, means)):
        known = published if name != called or whole else {}
        lines += [_line(name, cell, mean(of[cell]), of[cell], known.get((name, *cell))) for cell in cells]
        for method in (method for method, what in cells if what == "base"):
            base, new = of[method, "base"], of[method, "new"]
            seeds = [harmonic_mean(*pair) for pair in zip(base, new)]
            cell = (method, "H")
            lines.append(_line(name, cell, harmonic_mean(mean(base), mean(new)), seeds, known.get((name, *cell))))
    return lines


def _line(name: str, cell: Cell, measured: float, seeds: Sequence[float], published: Figure | None) -> dict[str, Any]:
    """What is measured and its spread over seeds beside the published figure, None where none is known."""
    method, what = cell
    return {
        "set": name, "method": method, "classes" if isinstance(what, str) else "shots": what,
        "measured": round(measured, 2), "std": round(stdev(seeds), 2) if len(seeds) > 1 else 0.0,
        "seeds": [round(accuracy, 2) for accuracy in seeds],
        "published": published.value if published else None, "source": published.source if published else None,
        "difference": round(measured - published.value, 2) if published else None,
    }  # fmt: skip


def gaps_of(lines: Sequence[Mapping[str, Any]], gaps: Sequence[Gap]) -> Iterator[dict[str, Any]]:
    """How much better one method is than another in the mean, at each number of shots that both have."""
    means = {(line["method"], line.get("shots")): line["measured"] for line in lines if line["set"].startswith("mean")}
    for gap in gaps:
        for shots in sorted({k for label, k in means if label == gap.method and (gap.other, k) in means}):
            measured = round(means[gap.method, shots] - means[gap.other, shots], 2)
            yield {"method": gap.method, "other": gap.other, "shots": shots, "measured": measured,
                   "published": gap.published, "source": gap.source}  # fmt: skip


def shown(found: Mapping[str, Any]) -> str:
    """A table as text."""
    what = "shots" if "shots" in found["lines"][0] else "classes"
    rows = [("data set", "method", what, "published", "measured", "difference")]
    for line in found["lines"]:
        published, difference = "not known", "-"
        if line["published"] is not None:
            published, difference = f"{line['published']:.2f}", f"{line['difference']:+.2f}"
        measured = f"{line['measured']:.2f} ± {line['std']:.2f}"
        rows.append((line["set"], line["method"], str(line[what]), published, measured, difference))
    widths = [max(map(len, column)) for column in zip(*rows)]
    text = ["  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip() for row in rows]
    for gap in found["gaps"]:
        better = f"{gap['method']} - {gap['other']} at {gap['shots']} shots: {gap['measured']:+.2f}"
        text.append(f"{better} (published: {gap['published']})")
    sources = dict.fromkeys(line["source"] for line in (*found["lines"], *found["gaps"]) if line["source"])
    notes = [f"published: {source}" for source in sources]
    notes += [f"not as published: {note}" for note in found["not_as_published"]]
    return "\n".join([found["table"], *text, *notes])
