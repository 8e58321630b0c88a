"""How sure a figure is: 95 % intervals over draws of patients, all draws at once.

Each function takes `weights` (d, n): how often each of n pictures, lesions or volumes counts in each of d draws. A row
of ones gives the figure itself, so figure and interval come of one computation.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

DRAWS = 1000
ENDS = (2.5, 97.5)
"""Percentiles between which 95 % of the draws lie."""
NEXT_TO_NOTHING = 1e-9
"""What 1 - 0.9 is short of 0.1 must not cost a negative."""

Weights = Float[np.ndarray, "d n"]
PerDraw = Float[np.ndarray, " d"]


def patient_weights(groups: Sequence[str], seed: int = 0) -> Weights:
    """A row of ones, then a row for each draw of as many groups as there are, with replacement, in which each thing
    counts as often as its group was drawn; the row of ones alone where there is one group."""
    names, group = np.unique(np.array(groups), return_inverse=True)
    ones = np.ones((1, len(groups)))
    if len(names) < 2:
        return ones
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS)
    return np.vstack([ones, drawn[:, group]])


def figure_of(values: PerDraw) -> tuple[float, tuple[float, float] | None]:
    """A figure, and its interval over the draws in which it has a value; None where there are no draws."""
    drawn = values[1:][np.isfinite(values[1:])]
    ends = None
    if len(drawn):
        low, high = np.percentile(drawn, ENDS).tolist()
        ends = (round(low, 6), round(high, 6))
    return round(float(values[0]), 6), ends


def figures_of(draws: Mapping[str, PerDraw]) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """The figures by name that have a value, and the intervals of those that have one."""
    figures = {name: figure_of(values) for name, values in draws.items()}
    known = {name: of for name, of in figures.items() if np.isfinite(of[0])}
    return {n: value for n, (value, _) in known.items()}, {n: ends for n, (_, ends) in known.items() if ends}


def accuracy(weights: Weights, right: Bool[np.ndarray, " n"]) -> PerDraw:
    return share(weights @ right, weights.sum(1))


def balanced_accuracy(weights: Weights, right: Bool[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> PerDraw:
    """The mean over the classes that are there of the share of each that is right."""

    def of(label: int) -> PerDraw:
        there = labels == label
        return share(weights @ (right & there), weights @ there)

    return _mean(np.stack([of(label) for label in np.unique(labels).tolist()]))


def auroc(weights: Weights, scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> PerDraw:
    """The chance that a positive scores above a negative, ties counting half."""
    order = np.argsort(scores, kind="stable")
    starts = _ties(scores[order])
    up, down = (np.add.reduceat(weights[:, order] * of[order], starts, 1) for of in (positive, ~positive))
    below = np.cumsum(down, 1) - down
    return share((up * (below + 0.5 * down)).sum(1), up.sum(1) * down.sum(1))


def sensitivity_at_specificity(
    weights: Weights, scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"], specificity: float
) -> PerDraw:
    """The largest share of positives that score at least a threshold which that share of negatives stay below.

    Things of one score pass a threshold together. No number in a draw without positives or without negatives.
    """
    order = np.argsort(-scores, kind="stable")
    starts = _ties(scores[order])
    up, down = (np.cumsum(np.add.reduceat(weights[:, order] * of[order], starts, 1), 1) for of in (positive, ~positive))
    may = down <= (1 - specificity) * down[:, -1:] + NEXT_TO_NOTHING
    found = share(np.where(may, up, 0).max(1), up[:, -1])
    return np.where(down[:, -1] > 0, found, np.nan)


def mean_over(weights: Weights, values: Float[np.ndarray, " n"]) -> PerDraw:
    """The mean of the values that there are."""
    there = np.isfinite(values)
    return share(weights @ np.where(there, values, 0), weights @ there)


def over_classes(of: Callable[[int], PerDraw], classes: int) -> PerDraw:
    """The mean over the classes that have a value in a draw."""
    return _mean(np.stack([of(label) for label in range(classes)]))


def _mean(of_classes: Float[np.ndarray, "c d"]) -> PerDraw:
    there = np.isfinite(of_classes)
    return share(np.where(there, of_classes, 0).sum(0), there.sum(0).astype(float))


def share(part: PerDraw, whole: PerDraw) -> PerDraw:
    """Not a number where there is nothing to have a share of."""
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def _ties(ordered: Float[np.ndarray, " n"]) -> Int[np.ndarray, " t"]:
    """Where runs of one value begin."""
    return np.flatnonzero(np.r_[True, np.diff(ordered) != 0])
