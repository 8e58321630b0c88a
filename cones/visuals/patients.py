"""What rows are worth for patients, for the report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cones.common.files import read_json
from cones.visuals.charts import line_chart
from cones.visuals.parts import Chart, Part, Table

FILE = Path("rows/patients.json")
"""In an `evaluated` folder whose pictures have groups: figures, intervals and the free-response curve of each row."""
RESEARCH = "For research only, not for diagnosis."
MEANINGS = {
    "sensitivity_at_1fp": "sensitivity at 1 false positive a volume",
    "sensitivity_at_2fp": "sensitivity at 2 false positives a volume",
    "sensitivity_at_4fp": "sensitivity at 4 false positives a volume",
    "sensitivity_at_90_specificity": "sensitivity at a specificity of 0.9, mean over classes",
    "box_ap10": "box AP at an IoU of 0.1",
    "box_ap30": "box AP at an IoU of 0.3",
    "mask_ap10": "mask AP at an IoU of 0.1",
    "mask_ap30": "mask AP at an IoU of 0.3",
    "hd95_mm": "95th percentile of the Hausdorff distance, mm",
    "dice": "Dice of a volume",
    "volumes_without_lesion": "volumes with nothing to find, each class counted",
    "volumes_without_prediction": "volumes with nothing found, each class counted",
    "volumes_without_either": "volumes with neither, which Dice leaves out",
    "auroc": "AUROC, mean over classes",
}
MOST_FALSE = 8.0
"""False positives a volume up to which the curve is drawn."""


def patient_parts(evaluated: Path, rows: Sequence[str]) -> list[Part]:
    """A table of figures with their intervals and, in detection, the free-response curve; nothing without groups."""
    if not (evaluated / FILE).exists():
        return []
    told = read_json(evaluated / FILE, dict[str, dict[str, Any]])
    names = list(dict.fromkeys(name for row in rows for name in told[row]["metrics"]))
    lines = [
        (MEANINGS.get(name, name.replace("_", " ")), *(figure_text(told[row], name) for row in rows)) for name in names
    ]
    note = (
        "On the test patients, with 95 % intervals over 1,000 draws of patients where there are two or more. "
        f"{RESEARCH}"
    )
    parts: list[Part] = [Table("What it is worth for patients", ("figure", *rows), lines, note)]
    curves = {row: told[row]["froc"] for row in rows if told[row]["froc"]}
    if curves:
        drawn = {row: _cut(points) for row, points in curves.items()}
        how = (
            "Share of the lesions that are found over the false positives a volume (a picture, where there are no "
            "volumes). A box finds a lesion by its centre or an IoU of 0.1; each lesion counts once."
        )
        parts.append(Chart("Lesions found", line_chart(drawn, "false positives a volume", "sensitivity"), how))
    return parts


def _cut(points: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """What is drawn of a curve: up to the edge, on a level with its last point before that if it goes on beyond."""
    near = [point for point in points if point[0] <= MOST_FALSE]
    if len(near) < len(points):
        near.append((MOST_FALSE, near[-1][1] if near else 0.0))
    return [x for x, _ in near], [y for _, y in near]


def figure_text(told: dict[str, Any], name: str) -> str:
    """A figure, and its interval where there is one."""
    if name not in told["metrics"]:
        return "n/a"
    value, ends = told["metrics"][name], told["intervals"].get(name)
    if name.startswith("volumes_"):
        return f"{value:.0f}"
    digits = 1 if name.endswith("_mm") else 3
    return f"{value:.{digits}f}" + ("" if ends is None else f" ({ends[0]:.{digits}f} to {ends[1]:.{digits}f})")
