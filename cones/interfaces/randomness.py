"""Random numbers that depend on what they are for, and on nothing drawn before: a resumed run draws the same."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it, what torch draws on the CPU for the start of a layer's weights comes from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def generator_for(*numbers: int) -> torch.Generator:
    """A generator of its own for (seed, step) or the like; all of the numbers count.

    torch takes 32 bits of a seed on the CPU, so that two numbers cannot stand side by side in one.
    """
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))
