"""ConES: the text encoder's output is searched itself, so the encoder never runs."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cones.types import Features, Prompts, TextEmbeds

Init = Literal["text", "image", "blend", "random"]
BLENDS = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Shares of the text in a blended start that are tried."""


class Cones(nn.Module):
    """Concept Embedding Search (arXiv 2305.18993, section 3): a free embedding for each token of each class.

    `embeds` (classes, n_tokens, d) stands where the text encoder's output would.
    """

    def __init__(self, start: Float[Tensor, "c n d"]) -> None:
        super().__init__()
        self.embeds = nn.Parameter(start.clone())
        classes, n, _ = start.shape
        self.register_buffer("owner", torch.arange(classes).repeat_interleave(n), persistent=False)
        self.register_buffer("mask", torch.ones(1, classes * n, dtype=torch.bool), persistent=False)

    def forward(
        self, names: Sequence[str], features: Features | None = None, generator: torch.Generator | None = None
    ) -> Prompts:
        return Prompts(text_embeds=TextEmbeds(self.embeds.view(1, -1, self.embeds.shape[-1]), self.mask, self.owner))


def start_embeddings(
    init: Init,
    text: Float[Tensor, "c d"],
    images: Float[Tensor, "c d"],
    loss_of: Callable[[Tensor], float],
    generator: torch.Generator,
) -> Float[Tensor, "c 1 d"]:
    """Where a search starts, one unit-length token a class.

    `text` is the template ensemble of each class, `images` the mean image feature of its training pictures;
    `loss_of` scores embeddings (c, d) on validation and chooses the blend.
    """
    text, images = F.normalize(text, dim=-1), F.normalize(images, dim=-1)
    match init:
        case "text":
            start = text
        case "image":
            start = images
        case "random":
            start = F.normalize(torch.randn(text.shape, generator=generator), dim=-1)
        case "blend":
            blends = [F.normalize(share * text + (1 - share) * images, dim=-1) for share in BLENDS]
            start = min(blends, key=loss_of)
    return start[:, None]


def class_means(features: Float[Tensor, "n d"], labels: Tensor, classes: int) -> Float[Tensor, "c d"]:
    """The mean direction of each class's features."""
    sums = torch.zeros(classes, features.shape[1]).index_add_(0, labels, F.normalize(features, dim=-1))
    return F.normalize(sums, dim=-1)
