"""Learning rates over the steps of a search or a fine-tuning."""

import math

from cones.methods.searched import Searched


def learning_rate(settings: Searched, step: int, steps_an_epoch: int) -> float:
    """The rate at a step: constant while warming up, then a cosine to zero over all epochs."""
    warm = settings.warmup_epochs * steps_an_epoch
    total = settings.epochs * steps_an_epoch
    if step < warm and total > warm:
        return min(settings.warmup_lr, settings.rate)
    return settings.rate * 0.5 * (1 + math.cos(math.pi * step / total))


LARGEST_GRADIENT = 1.0
"""Norm that the gradient of all that trains is clipped to."""


WARMUP_STEPS, WARMUP_SHARE = 5, 0.1


def rate_share(step: int, steps: int) -> float:
    """The share of both learning rates at a step: a tenth for the first 5 steps, or for the first tenth of all steps
    where that is shorter; then (1 + cos(pi step / steps)) / 2, which ends at zero."""
    if step < min(WARMUP_STEPS, steps // 10):
        return WARMUP_SHARE
    return 0.5 * (1 + math.cos(math.pi * step / steps))
