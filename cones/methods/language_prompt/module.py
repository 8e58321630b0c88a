"""GLIP's own prompt tuning: a table that is added to the text encoder's output."""

from collections.abc import Sequence

import torch
from torch import nn

from cones.interfaces.pictures import Features
from cones.interfaces.texts import Prompts, TextEmbeds


class LanguagePrompt(nn.Module):
    """GLIP's own prompt tuning (Li et al. 2022, language_prompt_v2): `table` (T, d) is added to the text encoder's
    output, whose value for a fixed caption is known before the search."""

    def __init__(self, text: TextEmbeds) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros_like(text.embeds[0]))
        for name in ("embeds", "mask", "owner", "pooled"):
            self.register_buffer(name, getattr(text, name))

    def forward(
        self, names: Sequence[str], features: Features | None = None, generator: torch.Generator | None = None
    ) -> Prompts:
        return Prompts(text_embeds=TextEmbeds(self.embeds + self.table, self.mask, self.owner, self.pooled))
