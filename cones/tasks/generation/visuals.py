"""What the evaluation of generation leaves for people."""

from collections.abc import Mapping
from pathlib import Path

from cones.common.cells import plot_text
from cones.common.files import write_picture
from cones.data.prepared import Split
from cones.tasks.task import Evaluation
from cones.visuals.sheets import WIDEST, picture_rows, shown_pictures
from cones.visuals.tables import write_csv

SHOWN = 8
"""Test pictures that are shown, the same for every row."""


def write(
    out: Path, task: str, found: Mapping[str, Evaluation], split: Split, best: str, threshold: float = 0.0
) -> None:
    """A sheet a row: the subject, then what was made of each sentence."""
    shown = shown_pictures(split, SHOWN, WIDEST)
    for index, picture in shown.items():
        write_picture(out / "pictures" / f"{index}.jpg", picture, quality=85)
    points: list[tuple[str, str, float, float]] = []
    for row, evaluation in found.items():
        assert evaluation.sampled is not None, "rows of generation are judged by samples"
        made = evaluation.sampled.pictures
        rows = [("the subject", list(shown.values())), *((p, some[:SHOWN]) for p, some in made.items())]
        write_picture(out / "rows" / f"{row}.jpg", picture_rows(rows), quality=88)
        points += [(row, p, round(a, 6), round(b, 6)) for p, (a, b) in evaluation.sampled.of_prompts.items()]
    write_csv(out / "plot.csv", ("row", "sentence", "dino", "clip_t"), points, plot_text)
