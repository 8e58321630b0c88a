"""Which of two validation scores is better, for each task: the one rule for searches, reports and the registry."""

import math
from collections.abc import Mapping

RANKED_BY: dict[str, tuple[tuple[str, int], ...]] = {
    "classification": (("accuracy", 1), ("loss", -1)),
    "detection": (("box_ap", 1), ("box_ap50", 1), ("mask_ap", 1)),
    "segmentation": (("mask_ap", 1), ("box_ap", 1)),
    "generation": (("denoising_loss", -1),),
}
"""By task: the metrics that decide, one after the other, with 1 where more is better and -1 where less is.

A row of a detection concept has a mask AP where it was given a mask head, and is better than its equal without."""


def headline(task: str) -> str:
    """The metric a task's rows are compared by first."""
    return RANKED_BY[task][0][0]


def rank(task: str, metrics: Mapping[str, float]) -> tuple[float, ...]:
    """A key that sorts metrics of a task from worst to best. One that is missing is the worst there is; where one is no
    finite number they all are, as the others come of the same predictions."""
    known = [(metrics.get(name), sign) for name, sign in RANKED_BY[task]]
    broken = any(value is not None and not math.isfinite(value) for value, _ in known)
    return tuple(-math.inf if value is None or broken else sign * value for value, sign in known)
