"""What the evaluate stage leaves for people: predictions, plots and pictures, by task."""

import csv
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cones.common.cells import csv_cell, plot_text
from cones.common.files import write_json, write_picture
from cones.data.prepared import Split
from cones.results.evaluate import Evaluation
from cones.tasks.detection.measure import coco_results, coco_truth
from cones.visuals.objects import beside, draw_instances
from cones.visuals.sheets import contact_sheet, picture_rows

SHOWN = {"classification": 40, "detection": 6, "segmentation": 6, "generation": 8}
"""Test pictures that are shown, the same for every row."""
SIDE = 160
"""The longer side of a shown picture in classification, in pixels, if it is larger."""
WIDEST = 480
"""The same in detection, where what was found is drawn into it."""


def write_evaluation(
    out: Path, task: str, found: Mapping[str, Evaluation], split: Split, best: str, threshold: float = 0.0
) -> None:
    """Fill an `evaluated` folder beside its metrics: `rows/` with what each row said of each picture, `pictures/`, and
    `plot.csv`, to be plotted: what the best row takes for what, the rows' precision over recall, or likeness over
    obedience of each sentence. Boxes below `threshold` are not drawn."""
    (out / "rows").mkdir()
    (out / "pictures").mkdir()
    if task == "classification":
        _classification(out, found, split, best)
    elif task == "generation":
        _generation(out, found, split)
    else:
        _detection(out, task, found, split, threshold)


def shown_pictures(split: Split, most: int, side: int) -> dict[int, Image.Image]:
    """Some pictures of a split drawn at random, always the same, by their index; none larger than `side`."""
    count = len(split.records)
    pictures = {i: split.picture(i) for i in sorted(random.Random(0).sample(range(count), min(most, count)))}
    for picture in pictures.values():
        picture.thumbnail((side, side))
    return pictures


def _classification(out: Path, found: Mapping[str, Evaluation], split: Split, best: str) -> None:
    shown = shown_pictures(split, SHOWN["classification"], SIDE)
    for index, picture in shown.items():
        write_picture(out / "pictures" / f"{index}.jpg", picture, quality=85)
    columns = ("picture", "actual", "predicted", "score")
    for row, evaluation in found.items():
        lines = _labels(evaluation, split.classes)
        _write_csv(out / "rows" / f"{row}.csv", columns, lines)
        sheet = contact_sheet(list(shown.values()), [lines[i][1:3] for i in shown])
        write_picture(out / "rows" / f"{row}.jpg", sheet, quality=85)
        if row == best:
            _write_csv(out / "plot.csv", columns, lines, plot_text)


def _labels(evaluation: Evaluation, classes: Sequence[str]) -> list[tuple[str, str, str, float]]:
    """Picture, actual and predicted class, and the score, of each test picture."""
    best = torch.cat([p.scores for p in evaluation.predictions]).max(1)
    store = evaluation.store
    rows = zip(store.ids, store.labels.tolist(), best.indices.tolist(), best.values.tolist())
    return [(i, classes[truth], classes[guess], round(score, 6)) for i, truth, guess, score in rows]


def _detection(out: Path, task: str, found: Mapping[str, Evaluation], split: Split, threshold: float) -> None:
    store = next(iter(found.values())).store
    shown = shown_pictures(split, SHOWN[task], 10**6)
    per_class, curves, drawn = {}, [], {}
    for i, picture in shown.items():
        drawn[i] = draw_instances(picture, store.truths[i], split.classes)
        _save(drawn[i], out / "pictures" / f"{i}-truth.jpg")
    write_json(out / "rows" / "truth.json", coco_truth(store.ids, store.truths, store.sizes, split.classes))
    for row, evaluation in found.items():
        instances = [one for p in evaluation.predictions for one in p.instances or ()]
        per_class[row] = evaluation.judged.per_class
        curves += [(kind, row, *point) for kind, *point in evaluation.judged.curves]
        write_json(out / "rows" / f"{row}.json", coco_results(instances), indent=None)
        pairs = []
        for i, picture in shown.items():
            mine = draw_instances(picture, instances[i], split.classes, threshold)
            _save(mine, out / "pictures" / f"{i}-{row}.jpg")
            pairs.append(beside(drawn[i], mine, ("truth", row)))
        _save(_stacked(pairs), out / "rows" / f"{row}.jpg", 2 * WIDEST)
    write_json(out / "rows" / "per_class.json", per_class)
    _write_csv(out / "plot.csv", ("kind", "row", "class", "recall", "precision"), curves, plot_text)


def _generation(out: Path, found: Mapping[str, Evaluation], split: Split) -> None:
    """A sheet a row: the subject, then what was made of each sentence."""
    shown = shown_pictures(split, SHOWN["generation"], WIDEST)
    for index, picture in shown.items():
        write_picture(out / "pictures" / f"{index}.jpg", picture, quality=85)
    points: list[tuple[str, str, float, float]] = []
    for row, evaluation in found.items():
        assert evaluation.sampled is not None, "rows of generation are judged by samples"
        made = evaluation.sampled.pictures
        rows = [("the subject", list(shown.values())), *((p, some[: SHOWN["generation"]]) for p, some in made.items())]
        write_picture(out / "rows" / f"{row}.jpg", picture_rows(rows), quality=88)
        points += [(row, p, round(a, 6), round(b, 6)) for p, (a, b) in evaluation.sampled.of_prompts.items()]
    _write_csv(out / "plot.csv", ("row", "sentence", "dino", "clip_t"), points, plot_text)


def _write_csv(
    path: Path, columns: Sequence[str], lines: Iterable[Sequence[Any]], cell: Callable[[str], str] = csv_cell
) -> None:
    """A table for people, whose text no spreadsheet and no plot takes for anything else; numbers stay numbers."""
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        safe = ([cell(value) if isinstance(value, str) else value for value in line] for line in lines)
        csv.writer(file).writerows([columns, *safe])


def _save(picture: Image.Image, path: Path, widest: int = WIDEST) -> None:
    copy = picture.copy()
    copy.thumbnail((widest, 10**6))
    write_picture(path, copy, quality=80)


def _stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures one under the other."""
    sheet = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet
