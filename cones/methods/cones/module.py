"""ConES: the text encoder's output is searched itself, so the encoder never runs."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cones.interfaces.pictures import Features
from cones.interfaces.texts import Prompts, TextEmbeds

Init = Literal["text", "word", "image", "blend", "random"]
BLENDS = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Shares of the text in a blended start that are tried."""


class Cones(nn.Module):
    """Concept Embedding Search (arXiv 2305.18993, section 3): free embeddings where the text encoder's output stood.

    `embeds` (T, d) are all of it: the tokens of each class, and on GLIP the marks and separators around them, which its
    fusion layers read as well.
    """

    def __init__(self, start: TextEmbeds) -> None:
        super().__init__()
        self.embeds = nn.Parameter(start.embeds[0].clone())
        self.register_buffer("owner", start.owner.clone(), persistent=False)
        self.register_buffer("mask", start.mask.clone(), persistent=False)
        self.register_buffer("pooled", start.pooled, persistent=False)

    def forward(
        self, names: Sequence[str], features: Features | None = None, generator: torch.Generator | None = None
    ) -> Prompts:
        return Prompts(text_embeds=TextEmbeds(self.embeds[None], self.mask, self.owner, self.pooled))


def with_tokens(text: TextEmbeds, n: int | None, generator: torch.Generator) -> TextEmbeds:
    """A caption's embeddings with `n` tokens a class in the place of those its name has; None: as it is.

    More tokens than the name has repeat it, moved apart by a little noise, or they would stay equal for ever; fewer
    are means of its parts.
    """
    if n is None:
        return text
    rows: list[Tensor] = []
    owner: list[int] = []
    for label, run in _runs(text.owner.tolist()):
        tokens = text.embeds[0, run]
        if label < 0:
            rows.append(tokens)
        elif n <= len(tokens):
            rows.append(torch.stack([part.mean(0) for part in tokens.tensor_split(n)]))
        else:
            repeated = tokens[torch.arange(n) % len(tokens)]
            rows.append(repeated + 0.1 * tokens.std() * torch.randn(repeated.shape, generator=generator))
        owner += [label] * len(rows[-1])
    embeds = torch.cat(rows)[None]
    return TextEmbeds(embeds, torch.ones(embeds.shape[:2], dtype=torch.bool), torch.tensor(owner), text.pooled)


def random_tokens(classes: int, n: int, width: int, generator: torch.Generator) -> TextEmbeds:
    """`n` tokens from N(0, 1) a class and no context: what a search starts from that never runs the text encoder."""
    embeds = torch.randn(1, classes * n, width, generator=generator)
    mask = torch.ones(embeds.shape[:2], dtype=torch.bool)
    return TextEmbeds(embeds, mask, torch.arange(classes).repeat_interleave(n))


def _runs(owner: Sequence[int]) -> list[tuple[int, slice]]:
    """Stretches of tokens of one owner: (owner, slice), in order."""
    found, start = [], 0
    for i in range(1, len(owner) + 1):
        if i == len(owner) or owner[i] != owner[start]:
            found.append((owner[start], slice(start, i)))
            start = i
    return found


def start_embeddings(
    init: Init,
    text: Float[Tensor, "c d"],
    images: Float[Tensor, "c d"],
    loss_of: Callable[[Tensor], float],
    generator: torch.Generator,
) -> Float[Tensor, "c d"]:
    """Where a search on CLIP starts, one unit-length token a class.

    `text` is the template ensemble of each class, `images` the mean image feature of its training pictures;
    `loss_of` scores embeddings (c, d) on validation and chooses the blend.
    """
    text, images = F.normalize(text, dim=-1), F.normalize(images, dim=-1)
    match init:
        case "text" | "word":
            start = text
        case "image":
            start = images
        case "random":
            start = F.normalize(torch.randn(text.shape, generator=generator), dim=-1)
        case "blend":
            blends = [F.normalize(share * text + (1 - share) * images, dim=-1) for share in BLENDS]
            start = min(blends, key=loss_of)
    return start
