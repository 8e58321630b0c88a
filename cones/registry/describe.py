"""The description of a registered version that is for medical pictures: what it was made on, and what it is worth."""

from pathlib import Path
from typing import Any

from cones.common.files import read_json
from cones.common.layout import EVALUATED, PREPARED
from cones.concept.card import ConceptCard
from cones.visuals.patients import FILE, RESEARCH, figure_text

SHOWN = ("modality", "window", "channels", "slices", "patch", "crop")
"""What it says of how pictures were cut."""


def description_of(card: ConceptCard, data: str) -> str | None:
    """Of a version whose pictures were cut from volumes, in Markdown; None for any other."""
    if card.reading is None:
        return None
    cut = ", ".join(f"{name} {_said(card.reading[name])}" for name in SHOWN if name in card.reading)
    report, lines = PREPARED / data / "report.json", [f"**{RESEARCH}**", "", f"Data: {data}; {cut}."]
    if report.exists():
        groups = read_json(report, dict[str, Any]).get("groups", {})
        lines.append(f"Patients: {', '.join(f'{count} {split}' for split, count in groups.items())}.")
    lines += [f"Classes: {', '.join(card.classes)}.", "", *_figures(EVALUATED / card.concept / FILE, card.row)]
    return "\n".join(lines)


def _figures(path: Path, row: str) -> list[str]:
    if not path.exists():
        return []
    told = read_json(path, dict[str, dict[str, Any]]).get(row)
    return [] if told is None else [f"- {name}: {figure_text(told, name)}" for name in told["metrics"]]


def _said(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
