"""Which of two validation scores is better, for each task: the one rule for searches, reports and the registry."""

import math
from collections.abc import Mapping

from cones.tasks.parts import part_of

Ranked = tuple[tuple[str, int], ...]
"""The metrics that decide, one after the other, with 1 where more is better and -1 where less is."""


def ranked_by(task: str) -> Ranked:
    """What rows of a task are ranked by; `ConesError` if there is no such task."""
    return part_of(task, "settings").RANKED_BY[task]


def headline(task: str) -> str:
    """The metric a task's rows are compared by first."""
    return ranked_by(task)[0][0]


def rank(task: str, metrics: Mapping[str, float]) -> tuple[float, ...]:
    """A key that sorts metrics of a task from worst to best. One that is missing is the worst there is; where one is no
    finite number they all are, as the others come of the same predictions."""
    known = [(metrics.get(name), sign) for name, sign in ranked_by(task)]
    broken = any(value is not None and not math.isfinite(value) for value, _ in known)
    return tuple(-math.inf if value is None or broken else sign * value for value, sign in known)
