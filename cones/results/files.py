"""What the evaluate stage leaves for people: predictions, plots and pictures, by task."""

from collections.abc import Mapping
from pathlib import Path

from cones.data.prepared import Split
from cones.tasks.classification.visuals import write_classification
from cones.tasks.detection.visuals import write_detection
from cones.tasks.generation.visuals import write_generation
from cones.tasks.task import Evaluation


def write_evaluation(
    out: Path, task: str, found: Mapping[str, Evaluation], split: Split, best: str, threshold: float = 0.0
) -> None:
    """Fill an `evaluated` folder beside its metrics: `rows/` with what each row said of each picture, `pictures/`, and
    `plot.csv`, to be plotted: what the best row takes for what, the rows' precision over recall, or likeness over
    obedience of each sentence. Boxes below `threshold` are not drawn."""
    (out / "rows").mkdir()
    (out / "pictures").mkdir()
    if task == "classification":
        write_classification(out, found, split, best)
    elif task == "generation":
        write_generation(out, found, split)
    else:
        write_detection(out, task, found, split, threshold)
