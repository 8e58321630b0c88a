"""How sure a figure is: 95 % intervals over draws of patients, all draws at once.

Each function takes `weights` (d, n): how often each of n pictures, lesions or volumes counts in each of d draws. A row
of ones gives the figure itself, so figure and interval come of one computation.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

DRAWS = 1000
ENDS = (2.5, 97.5)
"""Percentiles between which 95 % of the draws lie."""
NEXT_TO_NOTHING = 1e-9

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


def accuracy(weights: Weights, right: Bool[np.ndarray, " n"]) -> PerDraw:
    return _share(weights @ right, weights.sum(1))


def balanced_accuracy(weights: Weights, right: Bool[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> PerDraw:
    """The mean over the classes that are there of the share of each that is right."""

    def of(label: int) -> PerDraw:
        there = labels == label
        return _share(weights @ (right & there), weights @ there)

    return _mean(np.stack([of(label) for label in np.unique(labels).tolist()]))


def auroc(weights: Weights, scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> PerDraw:
    """The chance that a positive scores above a negative, ties counting half."""
    order = np.argsort(scores, kind="stable")
    starts = _ties(scores[order])
    up, down = (np.add.reduceat(weights[:, order] * of[order], starts, 1) for of in (positive, ~positive))
    below = np.cumsum(down, 1) - down
    return _share((up * (below + 0.5 * down)).sum(1), up.sum(1) * down.sum(1))


def best_within(
    weights: Weights, scores: Float[np.ndarray, " n"], gain: Float[np.ndarray, " n"], cost: Float[np.ndarray, " n"],
    of_gain: PerDraw, of_cost: PerDraw, most: float,
) -> PerDraw:  # fmt: skip
    """The largest share of `of_gain` that a threshold on the scores gains while its cost is at most `most` times
    `of_cost`.

    Things of one score pass a threshold together. Sensitivity at a specificity is this, and at a number of false
    positives.
    """
    if not len(scores):
        return _share(np.zeros(len(weights)), of_gain)
    order = np.argsort(-scores, kind="stable")
    starts = _ties(scores[order])
    gained, paid = (
        np.cumsum(np.add.reduceat(weights[:, order] * of[order], starts, 1), 1) for of in (gain, cost)
    )  # fmt: skip
    may = paid <= most * of_cost[:, None] + NEXT_TO_NOTHING
    return _share(np.where(may, gained, 0).max(1), of_gain)


def mean_over(weights: Weights, values: Float[np.ndarray, " n"]) -> PerDraw:
    """The mean of the values that there are."""
    there = np.isfinite(values)
    return _share(weights @ np.where(there, values, 0), weights @ there)


def over_classes(of: Callable[[int], PerDraw], classes: int) -> PerDraw:
    """The mean over the classes that have a value in a draw."""
    return _mean(np.stack([of(label) for label in range(classes)]))


def _mean(of_classes: Float[np.ndarray, "c d"]) -> PerDraw:
    there = np.isfinite(of_classes)
    return _share(np.where(there, of_classes, 0).sum(0), there.sum(0).astype(float))


def _share(part: PerDraw, whole: PerDraw) -> PerDraw:
    """Not a number where there is nothing to have a share of."""
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def _ties(ordered: Float[np.ndarray, " n"]) -> Int[np.ndarray, " t"]:
    """Where runs of one value begin."""
    return np.flatnonzero(np.r_[True, np.diff(ordered) != 0])
