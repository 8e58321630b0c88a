"""What a protocol makes of the accuracies on its targets."""

from collections.abc import Mapping
from statistics import mean

from cones.study.settings import Draws


def harmonic_mean(base: float, new: float) -> float:
    """H = 2 base new / (base + new) (Zhou et al. 2022b, section 4.1); 0 where both are."""
    return 2 * base * new / (base + new) if base + new else 0.0


def drawn_together(accuracy: float, others: Mapping[str, float], draws: Draws) -> dict[str, float]:
    """Of one cell: H of base and new classes, or the mean over the data sets that it was tested on besides."""
    if draws.protocol == "base_to_new":
        return {"harmonic_mean": round(harmonic_mean(accuracy, others["new_accuracy"]), 6)}
    return {"target_accuracy": round(mean(others.values()), 6)} if others else {}
