"""Random draws that vary less: the generated world with pictures of a class nearer to each other."""

from collections.abc import Sequence
from typing import Any

import numpy as np


class Narrowed(np.random.Generator):
    """Draws numbers and choices from the middle `share` of their ranges; what has no range, such as noise, is as it is.

    At 0 each draw is the middle one, at 1 what a plain generator draws.
    """

    def __init__(self, bits: np.random.BitGenerator, share: float) -> None:
        super().__init__(bits)
        self.share = share

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        middle = (low + high) / 2
        return middle + self.share * (super().uniform(low, high, size) - middle)

    def choice(self, options: Any, *further: Any, **settings: Any) -> Any:  # type: ignore[override]
        kept = max(1, round(self.share * len(options)))
        start = (len(options) - kept) // 2
        return super().choice(options[start : start + kept], *further, **settings)


def stream_of(seeds: Sequence[int], variety: float) -> np.random.Generator:
    """A generator of its own for each sequence of seeds."""
    return np.random.default_rng(seeds) if variety == 1 else Narrowed(np.random.PCG64(seeds), variety)
