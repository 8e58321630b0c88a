"""The cells of a study: one method at one number of shots with one seed, searched, and tested once."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cones.common.errors import DataError
from cones.common.files import content_hash, fresh_file, reading
from cones.features.store import FeatureStore
from cones.methods.searched import Method, Row
from cones.search.outcome import SearchedRow
from cones.search.row import search_row
from cones.study.averages import drawn_together
from cones.study.pictures import StudyPictures
from cones.study.targets import Target, told_of
from cones.tasks.parts import part_of, task_of
from cones.tasks.task import predict_all
from cones.tasks.texts import at_once

if TYPE_CHECKING:
    from accelerate import Accelerator

MEASURED = ("accuracy", "macro_f1", "auroc", "loss")
COSTS = ("feature_seconds", "optimise_seconds", "steps", "steps_to_best", "trained_parameters", "text_encoder_calls",
         "peak_memory_mb")  # fmt: skip
COLUMNS = ("method", "shots", "seed", *MEASURED, "val_accuracy", "lr", *COSTS, "split_hash", "cell")
"""Of `results.csv`: what is measured on test pictures of the classes searched for, the accuracy on validation if there
is some, what it cost, and what of. After them stand those of the protocol (`Draws.measured`)."""
Line = dict[str, str]


@dataclass(frozen=True)
class Cell:
    """A method, by its name in the study, at a number of shots, with a seed; `code` is the hash of all that it runs."""

    label: str
    method: Method
    shots: int
    seed: int
    code: str


def run_cells(
    cells: Sequence[Cell],
    pictures: StudyPictures,
    accelerator: "Accelerator",
    table: Path,
    on_cell: Callable[[int, str], None] = lambda done, note: None,
) -> list[Line]:
    """Search and test each cell; its line is in the table when it is done, and is not made again. Lines of cells that
    the study has no longer go at the end."""
    columns = (*COLUMNS, *pictures.draws.measured)
    known = {line["cell"]: line for line in read_lines(table) if set(line) == set(columns)}
    tested = {column: target.facts for column, target in pictures.targets.items()}
    lines: list[Line] = []
    for cell in cells:
        encoded = pictures.cell(cell.shots, cell.seed)
        draws, about = pictures.draws, encoded.about
        what = [cell.label, cell.seed, cell.method.model_dump(mode="json"), about["split_hash"], encoded.base.sha256,
                draws.views, draws.min_crop, draws.templates, about["names"], draws.protocol, tested,
                cell.code]  # fmt: skip
        key = content_hash(what)[:16]
        if key not in known:
            known[key] = {**_line(cell, pictures, accelerator), "cell": key}
            write_lines(table, list(known.values()), columns)
        lines.append(known[key])
        on_cell(1, f"{cell.label}, {cell.shots} shots, seed {cell.seed}: {100 * float(known[key]['accuracy']):.1f} %")
    write_lines(table, lines, columns)
    return lines


def _line(cell: Cell, pictures: StudyPictures, accelerator: "Accelerator") -> Line:
    encoded, draws = pictures.cell(cell.shots, cell.seed), pictures.draws
    live = None
    if cell.method.enters_image_encoder:
        live = partial(part_of("classification", "live").live_pictures, draws.concept(cell.shots, 0), pictures.data)
    found = search_row(cell.label, Row(concept="study", method=cell.method), encoded, accelerator, live=live)
    of = found.concept.card.method
    facts: dict[str, Any] = {"method": cell.label, "shots": cell.shots, "seed": cell.seed, **found.cost}
    facts |= _tested(found, cell.method, pictures, accelerator.device)
    facts |= {"val_accuracy": found.metrics.get("accuracy", ""), "lr": of.get("chosen_lr", of.get("lr", ""))}
    facts["split_hash"] = encoded.about["split_hash"][:12]
    return {name: str(facts.get(name, "")) for name in (*COLUMNS, *draws.measured)}


def _tested(found: SearchedRow, method: Method, pictures: StudyPictures, device: Any) -> dict[str, float]:
    """What a cell is worth on each target, and what its protocol makes of that."""
    metrics: dict[str, dict[str, float]] = {}
    with TemporaryDirectory() as folder:
        features_of = partial(_features, found.concept.visual_tokens, pictures, Path(folder))
        for column, target in pictures.targets.items():
            metrics[column] = _metrics(target, features_of(target), found, method, pictures, device)
    others = {column: of["accuracy"] for column, of in metrics.items() if column != "accuracy"}
    return metrics["accuracy"] | others | drawn_together(metrics["accuracy"]["accuracy"], others, pictures.draws)


def _features(visual: Tensor | None, pictures: StudyPictures, folder: Path, target: Target) -> FeatureStore:
    """Those of all pictures of a target's split, encoded anew, once, where a method changes how that is done."""
    if visual is None:
        return target.features
    place = folder / content_hash(str(target.split.folder))[:16]
    if not place.exists():
        part_of("classification", "encode").encode_test(pictures.opened, target.split, None, place, visual)
    return FeatureStore(place)


def _metrics(
    target: Target, features: FeatureStore, found: SearchedRow, method: Method, pictures: StudyPictures, device: Any
) -> dict[str, float]:
    task, store = task_of("classification"), target.of(features)
    text, own_texts = told_of(target, found, method, pictures.opened), method.reads_pictures
    batches = store.batches(at_once(task.batch, len(target.classes), own_texts))
    predictions = predict_all(pictures.opened, batches, text, task, device, own_texts)
    return task.full(predictions, store, target.classes).metrics


def read_lines(table: Path) -> list[Line]:
    """The lines of a table, none if there is none yet; `DataError` for a damaged one."""
    if not table.exists():
        return []
    with reading(table), table.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file, strict=True))
    if any(not set(COLUMNS) <= set(line) or None in (*line, *line.values()) for line in lines):
        raise DataError(f"{table} is not a table of a study; remove it, and its cells are made again")
    return lines


def write_lines(table: Path, lines: Sequence[Line], columns: Sequence[str]) -> None:
    """Write the table, whole or not at all."""
    with fresh_file(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(lines)
