"""How detection and segmentation show their results: AP by class, precision over recall, and drawn test pictures."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cones.common.files import read_json, reading
from cones.visuals.charts import line_chart
from cones.visuals.parts import Card, Chart, Gallery, Part, Table, TaskReport, read_csv

LONGEST = 30
"""Classes that are listed one by one; of more, the ones that the best row finds worst."""
OTHERS = 2
"""Rows beside the best one whose predictions are shown."""
NONE = "\N{EN DASH}"
"""Shown for a class that no test picture has."""
MEAN = "all classes"
"""What `plot.csv` calls the mean over classes."""


def _parts(kind: str, evaluated: Path, rows: Sequence[str], best: str) -> list[Part]:
    per_class = read_json(evaluated / "rows" / "per_class.json", dict[str, dict[str, dict[str, float]]])
    return [
        _classes(kind, per_class, rows, best),
        _precision_recall(kind, evaluated / "plot.csv", rows),
        _gallery(evaluated / "pictures", rows, best),
    ]


def _classes(kind: str, per_class: dict[str, dict[str, dict[str, float]]], rows: Sequence[str], best: str) -> Table:
    metric = f"{kind}_ap"
    found = {name: [per_class[row][name].get(metric) for row in rows] for name in per_class[best]}
    note = f"{kind.capitalize()} AP of each class on the test pictures, in percent; {NONE} where they show none of it."
    if len(found) > LONGEST:
        at = list(rows).index(best)
        worst = sorted((name for name in found if found[name][at] is not None), key=lambda name: found[name][at] or 0.0)
        note = f"{note} Of {len(found)} classes the {LONGEST} that {best} finds worst."
        found = {name: found[name] for name in worst[:LONGEST]}
    lines = [(name, *(NONE if v is None else f"{100 * v:.1f}" for v in values)) for name, values in found.items()]
    shade = [[v or 0.0 for v in values] for values in found.values()]
    return Table("How well each class is found", ("class", *rows), lines, note, shade)


def _precision_recall(kind: str, path: Path, rows: Sequence[str]) -> Chart:
    lines: dict[str, tuple[list[float], list[float]]] = {row: ([], []) for row in rows}
    points = read_csv(path, ("kind", "row", "class", "recall", "precision"))
    with reading(path):
        for point in points:
            if point["kind"] == kind and point["class"] == MEAN and point["row"] in lines:
                recalls, precisions = lines[point["row"]]
                recalls.append(float(point["recall"]))
                precisions.append(float(point["precision"]))
    note = (
        f"Mean over the classes on the test pictures; a {kind} is right at an IoU of 0.5 or more. Higher and further "
        "to the right is better; the area under a line is AP50."
    )
    return Chart("Precision over recall", line_chart(lines, "recall", "precision"), note)


def _gallery(folder: Path, rows: Sequence[str], best: str) -> Gallery:
    """The pictures that `evaluate` drew, `<index>-truth.jpg` and an `<index>-<row>.jpg` a row."""
    shown = [best, *(row for row in rows if row != best)][: 1 + OTHERS]
    cards = []
    for truth in sorted(folder.glob("*-truth.jpg"), key=lambda p: int(p.stem.split("-")[0])):
        index = truth.stem.split("-")[0]
        cards.append(Card(truth.read_bytes(), [(f"picture {index}: truth", None)]))
        cards += [Card((folder / f"{index}-{row}.jpg").read_bytes(), [(row, None)]) for row in shown]
    note = "Test pictures drawn at random, the same for every row: what they show, then what the rows find in them."
    return Gallery("Pictures and what is found in them", cards, note, wide=True)


def _metrics(kind: str) -> dict[str, str]:
    """What each figure of a kind means."""
    ap = "average precision (area under precision over recall) averaged over classes"
    return {
        f"{kind}_ap": f"{ap} and over IoU 0.50 to 0.95 of predicted and true {kind} (COCO's AP, pycocotools)",
        f"{kind}_ap50": f"the same where a {kind} is right at an IoU of 0.5 or more",
        f"{kind}_ap75": f"the same where a {kind} is right at an IoU of 0.75 or more",
        f"{kind}_ap_small": f"{kind} AP of objects below 32 x 32 pixels",
        f"{kind}_ap_medium": f"{kind} AP of objects from 32 x 32 to 96 x 96 pixels",
        f"{kind}_ap_large": f"{kind} AP of objects above 96 x 96 pixels",
    }


DETECTION = TaskReport("box_ap", _metrics("box"), "val_box_ap", partial(_parts, "box"))
SEGMENTATION = TaskReport("mask_ap", _metrics("mask") | _metrics("box"), "val_mask_ap", partial(_parts, "mask"))
REPORTS = {"detection": DETECTION, "segmentation": SEGMENTATION}
