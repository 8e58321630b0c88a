"""Random numbers that depend on what they are for, and on nothing drawn before: a resumed run draws the same."""

import numpy as np
import torch


def generator_for(*numbers: int) -> torch.Generator:
    """A generator of its own for (seed, step) or the like; all of the numbers count.

    torch takes 32 bits of a seed on the CPU, so that two numbers cannot stand side by side in one.
    """
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))
