"""Visual Prompt Tuning (VPT): prompts among the tokens of a picture."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cones.interfaces.pictures import Features
from cones.interfaces.protocols import Backbone
from cones.interfaces.texts import Prompts, TextEmbeds
from cones.methods.fixed import FixedText
from cones.methods.start import Start
from cones.methods.visual import uniform_prompts


class VPT(nn.Module):
    """VPT (Jia et al. 2022, section 3.2): `tokens` (l, m, d) are searched, m for each of the first l layers.

    The text stays what the text encoder said of the class names before the search.
    """

    def __init__(self, text: TextEmbeds, tokens: Float[Tensor, "l m d"]) -> None:
        super().__init__()
        self.text = FixedText(text)
        self.tokens = nn.Parameter(tokens)

    def forward(
        self, names: Sequence[str], features: Features | None = None, generator: torch.Generator | None = None
    ) -> Prompts:
        return replace(self.text(names), visual_tokens=self.tokens)


def start_vpt(layers: int, n: int, backbone: Backbone, start: Start) -> VPT:
    """VPT before its search."""
    return VPT(start.text, uniform_prompts(layers, n, backbone.sites["visual_tokens"], start.generator))
