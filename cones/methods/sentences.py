"""Personalised generation: what a picture is told with is one of some sentences that the concept stands in."""

import torch
from jaxtyping import Float
from torch import Tensor

from cones.interfaces.pictures import Features


def drawn_sentences(count: int, features: Features | None, generator: torch.Generator | None) -> Tensor:
    """Which of `count` sentences each picture of a batch is told with: a random one, without a generator they take
    turns; without pictures all of them, in order."""
    if features is None:
        return torch.arange(count)
    pictures = len(features.views)
    if generator is None:
        return torch.arange(pictures) % count
    return features.draw(lambda n: torch.randint(count, (n,), generator=generator))


def fitted(vectors: Float[Tensor, "m d"], n: int | None) -> Float[Tensor, "n d"]:
    """The first `n` of some vectors, which come again where they are fewer; None: as they are."""
    return vectors if n is None else vectors[torch.arange(n, device=vectors.device) % len(vectors)]


def apart(rows: Float[Tensor, "n d"], generator: torch.Generator) -> Float[Tensor, "n d"]:
    """Rows moved a little, where some are equal, or they would stay so for ever."""
    if len(rows.unique(dim=0)) == len(rows):
        return rows
    return rows + 0.1 * rows.std() * torch.randn(rows.shape, generator=generator).to(rows)
