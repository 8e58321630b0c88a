"""What the evaluation of classification leaves for people."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from cones.common.cells import plot_text
from cones.common.files import write_picture
from cones.data.prepared import Split
from cones.tasks.task import Evaluation
from cones.visuals.sheets import contact_sheet, shown_pictures
from cones.visuals.tables import write_csv

SHOWN = 40
"""Test pictures that are shown, the same for every row."""

ATTENTION = "rows/attention"
"""The folder of sheets that say what visual prompts look at: in an output of the stage, as DVC keeps no other file."""
SIDE = 160
"""The longer side of a shown picture in classification, in pixels, if it is larger."""


def write(
    out: Path, task: str, found: Mapping[str, Evaluation], split: Split, best: str, threshold: float = 0.0
) -> None:
    """What each row says of each picture, sheets of some and of what visual prompts look at, and what the best row
    takes for what."""
    if any(evaluation.attention is not None for evaluation in found.values()):
        (out / ATTENTION).mkdir()
    shown = shown_pictures(split, SHOWN, SIDE)
    for index, picture in shown.items():
        write_picture(out / "pictures" / f"{index}.jpg", picture, quality=85)
    columns = ("picture", "actual", "predicted", "score")
    for row, evaluation in found.items():
        lines = _labels(evaluation, split.classes)
        write_csv(out / "rows" / f"{row}.csv", columns, lines)
        sheet = contact_sheet(list(shown.values()), [lines[i][1:3] for i in shown])
        write_picture(out / "rows" / f"{row}.jpg", sheet, quality=85)
        if evaluation.attention is not None:
            write_picture(out / ATTENTION / f"{row}.jpg", evaluation.attention, quality=90)
        if row == best:
            write_csv(out / "plot.csv", columns, lines, plot_text)


def _labels(evaluation: Evaluation, classes: Sequence[str]) -> list[tuple[str, str, str, float]]:
    """Picture, actual and predicted class, and the score, of each test picture."""
    best = torch.cat([p.scores for p in evaluation.predictions]).max(1)
    store = evaluation.store
    rows = zip(store.ids, store.labels.tolist(), best.indices.tolist(), best.values.tolist())
    return [(i, classes[truth], classes[guess], round(score, 6)) for i, truth, guess, score in rows]
