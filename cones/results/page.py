"""The report: one page that stands alone, made from the files of the other stages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cones.common.errors import DAMAGED, DataError
from cones.common.files import reading
from cones.common.layout import EVALUATED, SEARCHED
from cones.common.tensors import read_metadata
from cones.concept.card import CARD_KEY, ConceptCard
from cones.results.render import render
from cones.results.summary import validation_metrics
from cones.study.settings import Draws
from cones.tasks.parts import report_of
from cones.tasks.ranking import rank
from cones.visuals.charts import line_chart
from cones.visuals.parts import Chart, Part, TaskReport, read_csv
from cones.visuals.patients import patient_parts

COSTS = {
    "pictures encoded": "seconds to encode the concept's pictures and names, once; all its rows share it",
    "searched in": "seconds of the search itself, with its validation, without the start of the program",
    "numbers searched": "parameters of the method that are trained; the base model's are not",
    "text encoder calls": "how often the text encoder ran while searching",
    "steps to best": "optimiser steps until the best validation score, which is the one kept",
}
FIGURES = {"feature_seconds", "optimise_seconds", "trained_parameters", "text_encoder_calls", "steps_to_best"}
"""What the page shows of a row's cost."""


@dataclass(frozen=True)
class Row:
    """A row of the table: its scores, its cost, and the card of its Concept."""

    name: str
    method: str
    val: dict[str, float]
    test: dict[str, float]
    cost: dict[str, float]
    card: dict[str, Any]
    best: bool


@dataclass(frozen=True)
class ConceptReport:
    """All that the page says of one concept."""

    name: str
    rows: list[Row]
    task: TaskReport
    parts: list[Part]

    @property
    def best(self) -> Row:
        return next(row for row in self.rows if row.best)

    @property
    def baseline(self) -> Row | None:
        """The row without a search, to compare the best one with."""
        return next((r for r in self.rows if r.method == "zero_shot" and not r.best), None)


def report_page(
    summary: list[dict[str, Any]], methods: Mapping[str, str], studies: Mapping[str, Draws] = MappingProxyType({}),
    runs: Mapping[str, str] = MappingProxyType({}),
) -> str:  # fmt: skip
    """The page, as HTML, from `results/summary.json` and the files of the rows that it names; `methods` says what
    each method does. `studies` has what each one draws: it says where their own pages are. `runs` has the addresses of
    rows' runs, where there are some, as links."""
    names = dict.fromkeys(line["concept"] for line in summary)
    concepts = [_concept(name, [line for line in summary if line["concept"] == name]) for name in names]
    return render("page.html.jinja", concepts=concepts, methods=methods, costs=COSTS, studies=studies, runs=runs)


def _concept(name: str, lines: list[dict[str, Any]]) -> ConceptReport:
    cards = {x["row"]: _card(name, x["row"]) for x in lines}
    kind = next(iter(cards.values()))["task"]
    task = report_of(kind)
    for x in lines:
        if task.headline not in x["val"].keys() & x["test"].keys():
            path = EVALUATED / name / "metrics.json"
            raise DataError(f"{path} is damaged (`{x['row']}` has no {task.headline}); {DAMAGED}")
        for figure in FIGURES - x["cost"].keys():
            path = SEARCHED / name / x["row"] / "cost.json"
            raise DataError(f"{path} is damaged (it has no {figure}); {DAMAGED}")
    first = max(lines, key=lambda x: rank(kind, x["val"]))
    rows = [Row(x["row"], x["method"], x["val"], x["test"], x["cost"], cards[x["row"]], x is first) for x in lines]
    curves = {row.name: _curve(SEARCHED / name / row.name / "curves.csv", task.curve) for row in rows}
    drawn = {row: curve for row, curve in curves.items() if curve[0]}
    parts: list[Part] = []
    if drawn:
        what = task.curve.removeprefix("val_").replace("_", " ")
        note = f"Validation {what} while searching, over the optimiser steps so far; the best is the one kept."
        parts.append(Chart("How the searches went", line_chart(drawn, "optimiser step", f"validation {what}"), note))
    parts += _rates(name, [row.name for row in rows], task.curve.removeprefix("val_"))
    with reading(EVALUATED / name):
        parts += task.parts(EVALUATED / name, [r.name for r in rows], first["row"])
        parts += patient_parts(EVALUATED / name, [r.name for r in rows])
    return ConceptReport(name, rows, task, parts)


def _rates(concept: str, rows: Sequence[str], metric: str) -> list[Part]:
    """A drawing of the learning rates that rows of `lr: auto` tried, if there are such rows."""
    tried = {row: validation_metrics(SEARCHED / concept / row).get("rates", []) for row in rows}
    points = {row: sorted((of["lr"], of[metric]) for of in rates if metric in of) for row, rates in tried.items()}
    lines = {row: ([x for x, _ in of], [y for _, y in of]) for row, of in points.items() if of}
    if not lines:
        return []
    what = f"validation {metric.replace('_', ' ')}"
    note = (
        f"Best {what} of each learning rate while `lr: auto` chose among them; the worse ones had fewer epochs, and "
        "each row was then searched anew at the best."
    )
    return [Chart("Learning rates that were tried", line_chart(lines, "learning rate", what, "log"), note)]


def _card(concept: str, row: str) -> dict[str, Any]:
    path = SEARCHED / concept / row / "concept.safetensors"
    with reading(path):
        card = read_metadata(path, DataError, DAMAGED)[CARD_KEY]
        return ConceptCard.model_validate_json(card).model_dump(mode="json")


def _curve(path: Path, column: str) -> tuple[list[float], list[float]]:
    lines = read_csv(path, ("step", column))
    with reading(path):
        return [float(x["step"]) for x in lines], [float(x[column]) for x in lines]
