"""Conditional Context Optimization (CoCoOp): context tokens that each picture moves."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cones.interfaces.pictures import Features
from cones.interfaces.protocols import Backbone
from cones.interfaces.texts import Prompts, TextTokens


class CoCoOp(nn.Module):
    """CoCoOp (Zhou et al. 2022b, section 3.2): `context` (n, d) of all pictures and classes, to each token of which
    `meta_net` adds one vector for a picture, made of its feature (`width`, of unit length).

    Without pictures it gives the context alone.
    """

    def __init__(self, context: Float[Tensor, "n d"], width: int) -> None:
        super().__init__()
        self.context = nn.Parameter(context.clone())
        inside = max(1, width // 16)
        self.meta_net = nn.Sequential(nn.Linear(width, inside), nn.ReLU(), nn.Linear(inside, context.shape[1]))

    def forward(
        self, names: Sequence[str], features: Features | None = None, generator: torch.Generator | None = None
    ) -> Prompts:
        if features is None:
            return Prompts(text_tokens=TextTokens(self.context))
        moved = self.context + self.meta_net(features.tensors["image"])[:, None]  # (B, n, d)
        return Prompts(text_tokens=TextTokens(moved[:, None]))


def restored(searched: Mapping[str, Tensor], backbone: Backbone) -> CoCoOp:
    """The module again, of what a Concept holds. Raises `ValueError` for tensors that are not one's on this model."""
    n = len(searched["context"]) if "context" in searched and searched["context"].ndim else 1
    sites = backbone.sites
    with torch.device("meta"):  # their shapes are looked at before any room is taken
        method = CoCoOp(torch.empty(n, sites["text_tokens"].width), sites["text_embeds"].width)
    for name, parameter in method.named_parameters():
        if name not in searched or searched[name].shape != parameter.shape:
            have = tuple(searched[name].shape) if name in searched else "missing"
            raise ValueError(f"`{name}` is {have} and must be {tuple(parameter.shape)}")
    method.load_state_dict(dict(searched), assign=True)
    return method.to(backbone.device).requires_grad_(False)
