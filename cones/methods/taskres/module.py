"""Task Residual (TaskRes)."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from cones.interfaces.pictures import Features
from cones.interfaces.texts import Prompts, TextEmbeds
from cones.methods.fixed import FixedText


class TaskRes(nn.Module):
    """Embeddings t + alpha x of the classes (Yu et al. 2023, section 3.2): `residual` x (C, d) is 0 at the start."""

    def __init__(self, text: TextEmbeds, alpha: float) -> None:
        super().__init__()
        self.text, self.alpha = FixedText(text), alpha
        self.residual = nn.Parameter(torch.zeros_like(text.embeds[0]))

    def forward(
        self, names: Sequence[str], features: Features | None = None, generator: torch.Generator | None = None
    ) -> Prompts:
        text = self.text(names).text_embeds
        return Prompts(text_embeds=replace(text, embeds=text.embeds + self.alpha * self.residual))
