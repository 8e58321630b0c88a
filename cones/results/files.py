"""What the evaluate stage leaves for people: predictions, plots and pictures, by task."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from cones.common.files import write_json
from cones.data.prepared import Split
from cones.tasks.parts import part_of
from cones.tasks.task import Evaluation
from cones.visuals.patients import FILE


def write_evaluation(
    out: Path, task: str, found: Mapping[str, Evaluation], split: Split, best: str, threshold: float = 0.0
) -> None:
    """Fill an `evaluated` folder beside its metrics: `rows/` with what each row said of each picture, `pictures/`, and
    `plot.csv`, to be plotted: what the best row takes for what, the rows' precision over recall, or likeness over
    obedience of each sentence. Boxes below `threshold` are not drawn."""
    (out / "rows").mkdir()
    (out / "pictures").mkdir()
    part_of(task, "visuals").write(out, task, found, split, best, threshold)
    of_patients = {row: one.of_patients for row, one in found.items() if one.of_patients is not None}
    if of_patients:
        write_json(out / FILE, {row: asdict(of) for row, of in of_patients.items()})
