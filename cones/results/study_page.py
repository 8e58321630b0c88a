"""The report of a study: one page that stands alone, made from what the study has found."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cones.common.errors import DAMAGED
from cones.common.files import fresh_file, reading
from cones.results.render import figure, is_share, render
from cones.study.figures import Figure, about_of, figures_of
from cones.visuals.parts import Table

KNOWN = {
    "accuracy": ("Test accuracy", "Share of the test pictures whose class has the highest score."),
    "macro_f1": ("Test macro F1", "F1 score of each class, averaged over classes."),
    "optimise_seconds": ("Seconds of search", "With validation; the pictures are encoded before, once for all cells."),
    "trained_parameters": ("Numbers searched", "Parameters of the method that are trained."),
}
"""Title and note of figures that have some; others are called by their names."""


def write_study_page(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write `report.html` beside a study's plots (`*.svg`), which it shows."""
    plots = {path.stem.replace("_", " "): path.read_bytes() for path in sorted(folder.glob("*.svg"))}
    with reading(folder / "summary.json", DAMAGED):
        page = study_page(folder.name, summary, plots)
    with fresh_file(folder / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")


def study_page(name: str, summary: Mapping[str, Any], plots: Mapping[str, bytes]) -> str:
    """The page, as HTML, from a study's `summary.json` and its plots (SVG) by what they show."""
    tables, about = _tables(summary["methods"]), about_of(summary)
    return render("study.html.jinja", name=name, study=summary, about=about, plots=plots, tables=tables)


def _tables(methods: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """One for each figure: methods over numbers of shots."""
    told = {label: {shots: figures_of(of) for shots, of in by.items()} for label, by in methods.items()}
    shots = sorted({k for by in told.values() for k in by}, key=int)
    names = dict.fromkeys(name for by in told.values() for of in by.values() for name in of)
    heads = [f"{k} shot{'s' * (k != '1')}" for k in shots]
    tables = []
    for name in names:
        title, note = KNOWN.get(name, (name.replace("_", " "), ""))
        rows = [(label, *(_cell(by.get(k, {}).get(name), name) for k in shots)) for label, by in told.items()]
        tables.append(Table(title, ("method", *heads), rows, note))
    return tables


def _cell(found: Figure | None, name: str) -> str:
    """A figure as people read it, with its spread if it has one; `n/a` where a method has none."""
    if found is None:
        return "n/a"
    mean, spread = found
    if spread is None:
        return figure(mean, name)
    if is_share(name):
        return f"{100 * mean:.1f} ± {100 * spread:.1f} %"
    digits = 2 if name.endswith("seconds") else 3
    return f"{mean:.{digits}f} ± {spread:.{digits}f}"
