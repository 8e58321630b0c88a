"""What a study found: mean and spread over its seeds, and the figure that papers draw of it."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from cones.common.files import fresh_file, write_json
from cones.study.cells import Line
from cones.study.settings import Draws
from cones.visuals.charts import line_chart

TOLD = ("accuracy", "macro_f1", "optimise_seconds")


def summarise(lines: Sequence[Line], draws: Draws) -> dict[str, Any]:
    """Mean, standard deviation and each seed's value of what is `TOLD`, by method and shots."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for label in dict.fromkeys(line["method"] for line in lines):
        for shots in draws.shots:
            of = [line for line in lines if (line["method"], line["shots"]) == (label, str(shots))]
            found.setdefault(label, {})[str(shots)] = {
                **{name: _spread([float(line[name]) for line in of]) for name in TOLD},
                "trained_parameters": int(of[0]["trained_parameters"]),
            }
    hashes = {f"{line['shots']} shots, seed {line['seed']}": line["split_hash"] for line in lines}
    about = draws.model_dump(include={"protocol", "data", "backbone", "shots", "seeds"})
    return {**about, "split_hashes": hashes, "methods": found}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    spread = stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(mean(values), 6), "std": round(spread, 6), "seeds": values}


def write_summary(folder: Path, lines: Sequence[Line], draws: Draws) -> dict[str, Any]:
    """Write `summary.json`, and `accuracy.svg`: mean test accuracy over shots, a line a method."""
    summary = summarise(lines, draws)
    write_json(folder / "summary.json", summary)
    shots = sorted(draws.shots)
    curves = {
        label: (shots, [100 * of[str(k)]["accuracy"]["mean"] for k in shots])
        for label, of in summary["methods"].items()
    }
    with fresh_file(folder / "accuracy.svg") as temporary:
        temporary.write_text(line_chart(curves, "training pictures a class", "test accuracy (%)"), encoding="utf-8")
    return summary
