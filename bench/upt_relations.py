"""How gains go with variances over data sets: correlations, what they say of UPT's two claims, and the figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from common import RESULTS
from scipy import stats

from cones.visuals.charts import COLOURS

VARIANCES = ("visual_variance", "text_variance")
PROMPTS = ("coop", "vpt_shallow", "vpt_deep", "upt")
OTHER_KNOB = {"visual_variance": "apart", "text_variance": "variety"}
"""The knob of the other variance: where it stands still, only one of both varies."""
CLAIMS = {
    "coop": ("visual_variance", -1, "text prompts (CoOp) gain less where visual variance is high"),
    "vpt_shallow": ("text_variance", 1, "visual prompts (VPT-shallow) gain less where text variance is low"),
    "vpt_deep": ("text_variance", 1, "visual prompts (VPT-deep) gain less where text variance is low"),
}
"""Of UPT, section 3: by method the variance that its gain goes with, and the sign."""
DRAWS, CHANCE = 2000, 0.05


def relations(sets: Mapping[str, Any]) -> dict[str, Any]:
    """Correlations of both knobs with both variances, of both variances with each gain, and of zero-shot with both."""
    variances = {name: [of[name] for of in sets.values()] for name in VARIANCES}
    knobs = {name: [of[name] for of in sets.values()] for name in ("variety", "apart")}
    gains = {m: [of["gain"][m] for of in sets.values()] for m in next(iter(sets.values()))["gain"]}
    zero_shot = [of["test_accuracy"]["zero_shot"]["mean"] for of in sets.values()]
    found = {
        "knobs": {k: {v: rank_correlation(x, y) for v, y in variances.items()} for k, x in knobs.items()},
        "variances": rank_correlation(*variances.values()),
        "zero_shot": {v: correlated(x, zero_shot) for v, x in variances.items()},
        "gain": {m: {v: correlated(x, y) for v, x in variances.items()} for m, y in gains.items() if m in PROMPTS},
        "gain_at_other_knob": {
            m: {v: correlated_within(x, y, [of[OTHER_KNOB[v]] for of in sets.values()]) for v, x in variances.items()}
            for m, y in gains.items() if m in PROMPTS
        },
        "gain_left_to_gain": {
            m: {v: correlated(x, left(sets, m)) for v, x in variances.items()} for m in gains if m in PROMPTS
        },
    }  # fmt: skip
    return {**found, "reading": [reading(found, m) for m in CLAIMS]}


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's."""
    return round(float(stats.spearmanr(x, y).statistic), 3)


def left(sets: Mapping[str, Any], method: str) -> list[float]:
    """The gain as a share of what zero-shot leaves to gain: (a - z) / (1 - z) of the accuracies."""
    return [of["gain"][method] / max(1 - of["test_accuracy"]["zero_shot"]["mean"], 1e-6) for of in sets.values()]


def correlated(x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    """Pearson's and Spearman's correlation, each with its two-sided permutation p and a 95 % bootstrap interval."""
    ranks = stats.rankdata(x), stats.rankdata(y)
    return {"pearson": _correlated(np.array(x), np.array(y)), "spearman": _correlated(*ranks)}


def _correlated(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    def statistic(x: np.ndarray, y: np.ndarray, axis: int = -1) -> Any:
        return stats.pearsonr(x, y, axis=axis).statistic

    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return {"r": None, "p": None, "interval": None}
    shuffled = stats.permutation_test(
        (x,), lambda x, axis: statistic(x, np.broadcast_to(y, x.shape), axis), permutation_type="pairings",
        vectorized=True, n_resamples=DRAWS, rng=0,
    )  # fmt: skip
    drawn = np.random.default_rng(0).integers(0, len(x), (DRAWS, len(x)))
    drawn = drawn[[len(set(x[i])) > 1 and len(set(y[i])) > 1 for i in drawn]]
    interval = np.quantile(statistic(x[drawn], y[drawn]), [0.025, 0.975])
    return {"r": round(float(shuffled.statistic), 3), "p": round(float(shuffled.pvalue), 4),
            "interval": [round(float(end), 3) for end in interval]}  # fmt: skip


def correlated_within(x: Sequence[float], y: Sequence[float], level: Sequence[float]) -> dict[str, Any]:
    """Pearson's correlation of what is left of both when the mean of their `level` is taken away, with its two-sided p
    by permutations within the levels."""
    rng, groups = np.random.default_rng(0), [np.flatnonzero(np.array(level) == one) for one in sorted(set(level))]
    parted = np.array([x, y], float)
    for group in groups:
        parted[:, group] -= parted[:, group].mean(1, keepdims=True)
    if min(np.ptp(parted, axis=1)) < 1e-9:
        return {"r": None, "p": None}
    shuffled = np.tile(parted[1], (DRAWS, 1))
    for group in groups:
        shuffled[:, group] = rng.permuted(shuffled[:, group], axis=1)
    r = float(stats.pearsonr(*parted).statistic)
    others = np.abs(stats.pearsonr(parted[:1], shuffled, axis=1).statistic)
    return {"r": round(r, 3), "p": round(float((1 + (others >= abs(r) - 1e-9).sum()) / (1 + DRAWS)), 4)}


def reading(found: Mapping[str, Any], method: str) -> str:
    """What a claim comes to here, in a sentence."""
    variance, sign, claim = CLAIMS[method]
    rank = found["gain"][method][variance]["spearman"]
    if rank["r"] is None:
        return f"{claim}: cannot be told, its gains are all alike"
    said = "holds here" if sign * rank["r"] > 0 else "the other way round here"
    if rank["p"] >= CHANCE:
        said = "not told from chance here"
    low, high = rank["interval"]
    held = found["gain_at_other_knob"][method][variance]
    alone = "" if held["r"] is None else f"; with the other knob held, Pearson {held['r']:+.2f}, p {held['p']:.3f}"
    figures = f"Spearman {rank['r']:+.2f}, p {rank['p']:.3f}, 95 % from {low:+.2f} to {high:+.2f}"
    return f"{claim}: {said} ({figures}{alone})"


def draw_figure(sets: Mapping[str, Any]) -> None:
    """`upt_analysis.svg`: the gain of each prompt over zero-shot beside both variances, a point a data set."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cones", "font.family": "sans-serif"}):
        figure = Figure(figsize=(8.4, 3.6), layout="constrained")
        for axes, variance in zip(figure.subplots(1, 2, sharey=True), VARIANCES):
            for method, colour in zip(PROMPTS, COLOURS):
                x = [of[variance] for of in sets.values()]
                y = [100 * of["gain"][method] for of in sets.values()]
                axes.scatter(x, y, 18, colour, label=method)
                axes.plot(np.sort(x), np.polyval(np.polyfit(x, y, 1), np.sort(x)), color=colour, linewidth=1.2)
            axes.set_xlabel({"visual_variance": "within-class visual variance",
                             "text_variance": "between-class text variance"}[variance])  # fmt: skip
            axes.locator_params(axis="x", nbins=6)
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        figure.axes[0].set_ylabel("gain over zero-shot (points)")
        figure.axes[1].legend(frameon=False, fontsize=9)
        figure.savefig(RESULTS / "upt_analysis.svg", transparent=True, metadata={"Date": None, "Creator": None})
