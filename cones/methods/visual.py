"""Where visual prompts start, and what an image encoder takes of them."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from cones.common.errors import BackboneError
from cones.interfaces.protocols import Site


def uniform_prompts(depth: int, n: int, site: Site, generator: torch.Generator) -> Float[Tensor, "l m d"]:
    """`n` prompts for each of `depth` layers, uniform in +-sqrt(6 / (3 p^2 + d)) for patches of p pixels a side and
    width d (Jia et al. 2022, their code: the bound of Glorot for the layer that makes patches into tokens)."""
    if site.patch_size is None:
        raise BackboneError(
            "visual prompts start within a bound that the side of a patch gives, and this backbone's site for them "
            "does not say it; give its `Site` a `patch_size`"
        )
    bound = math.sqrt(6 / (3 * site.patch_size**2 + site.width))
    return bound * (2 * torch.rand(depth, n, site.width, generator=generator) - 1)


def layers_of(depth: int | None, site: Site, method: str) -> int:
    """How many layers take prompts, all where `depth` is None; `BackboneError` for more than there are."""
    if depth is not None and depth > site.depth:
        raise BackboneError(
            f"`{method}` with depth {depth}: this image encoder has {site.depth} layers; lower `depth`, or leave it "
            "out for all of them"
        )
    return site.depth if depth is None else depth
