"""Textual inversion: token vectors at the text encoder's input, in template sentences."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cones.interfaces.pictures import Features
from cones.interfaces.texts import Prompts, TextTokens
from cones.methods.sentences import drawn_sentences


class TextualInversion(nn.Module):
    """Textual inversion (Gal et al. 2022): `vectors` (n, d) at the text encoder's input, in the concept's place in one
    of the templates. They are parameters of their own; the token table is never given to the optimiser."""

    def __init__(self, templates: Sequence[str], start: Float[Tensor, "n d"]) -> None:
        super().__init__()
        self.vectors = nn.Parameter(start.clone())
        self.templates = tuple(templates)

    def forward(
        self, names: Sequence[str], features: Features | None = None, generator: torch.Generator | None = None
    ) -> Prompts:
        chosen = drawn_sentences(len(self.templates), features, generator).tolist()
        return Prompts(text_tokens=TextTokens(self.vectors, "name", tuple(self.templates[i] for i in chosen)))
