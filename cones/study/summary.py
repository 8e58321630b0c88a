"""What a study found: mean and spread over its seeds, and the figure that papers draw of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from types import MappingProxyType
from typing import Any

from cones.common.files import fresh_file, write_json
from cones.study.averages import harmonic_mean
from cones.study.cells import Line
from cones.study.settings import Draws
from cones.visuals.charts import line_chart

TOLD = ("accuracy", "macro_f1", "optimise_seconds")


def summarise(lines: Sequence[Line], draws: Draws) -> dict[str, Any]:
    """Mean, standard deviation and each seed's value of what is `TOLD` and of what the protocol measures besides, by
    method and shots.

    Of base_to_new `harmonic_mean` is that of each seed, and `harmonic_mean_of_averages` that of the mean base and the
    mean new accuracy, which is what papers report.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for label in dict.fromkeys(line["method"] for line in lines):
        for shots in draws.shots:
            of = [line for line in lines if (line["method"], line["shots"]) == (label, str(shots))]
            told: dict[str, Any] = {n: _spread([float(line[n]) for line in of]) for n in (*TOLD, *draws.measured)}
            if draws.protocol == "base_to_new":
                base, new = told["accuracy"]["mean"], told["new_accuracy"]["mean"]
                told["harmonic_mean_of_averages"] = round(harmonic_mean(base, new), 6)
            told["trained_parameters"] = int(of[0]["trained_parameters"])
            found.setdefault(label, {})[str(shots)] = told
    hashes = {f"{line['shots']} shots, seed {line['seed']}": line["split_hash"] for line in lines}
    about = draws.model_dump(include={"protocol", "data", "backbone", "shots", "seeds"})
    targets = {"targets": draws.targets} if draws.targets else {}
    return {**about, **targets, "split_hashes": hashes, "methods": found}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    spread = stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(mean(values), 6), "std": round(spread, 6), "seeds": values}


def write_summary(
    folder: Path, lines: Sequence[Line], draws: Draws, of: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Write `summary.json`, with the hashes of what it is `of`, and `accuracy.svg`: mean test accuracy, a line a
    method.

    It is over shots, with targets that on them; of base_to_new it is that on new classes against that on base classes,
    a line from the fewest shots to the most.
    """
    summary = {**summarise(lines, draws), **of}
    write_json(folder / "summary.json", summary)
    shots = sorted(draws.shots)

    def means(of: dict[str, Any], column: str) -> list[float]:
        return [100 * of[str(k)][column]["mean"] for k in shots]

    x, y = ("training pictures a class", "test accuracy (%)")
    told = "target_accuracy" if draws.targets else "accuracy"
    curves = {label: ([float(k) for k in shots], means(of, told)) for label, of in summary["methods"].items()}
    if draws.protocol == "base_to_new":
        x, y = "accuracy on base classes (%)", "accuracy on new classes (%)"
        curves = {n: (means(of, "accuracy"), means(of, "new_accuracy")) for n, of in summary["methods"].items()}
    with fresh_file(folder / "accuracy.svg") as temporary:
        temporary.write_text(line_chart(curves, x, y), encoding="utf-8")
    return summary
