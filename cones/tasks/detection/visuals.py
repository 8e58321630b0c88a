"""What the evaluation of detection leaves for people."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from cones.common.cells import plot_text
from cones.common.files import write_json, write_picture
from cones.data.prepared import Split
from cones.tasks.detection.measure import coco_results, coco_truth
from cones.tasks.task import Evaluation
from cones.visuals.objects import beside, draw_instances
from cones.visuals.sheets import WIDEST, shown_pictures
from cones.visuals.tables import write_csv

SHOWN = 6
"""Test pictures that are shown, the same for every row."""


def write(
    out: Path, task: str, found: Mapping[str, Evaluation], split: Split, best: str, threshold: float = 0.0
) -> None:
    """What each row finds, drawn into some pictures, AP by class and precision over recall; boxes below `threshold` are
    not drawn."""
    store = next(iter(found.values())).store
    shown = shown_pictures(split, SHOWN, 10**6)
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
    write_csv(out / "plot.csv", ("kind", "row", "class", "recall", "precision"), curves, plot_text)


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
