"""Texts as the text encoder embeds them, nothing searched."""

from collections.abc import Sequence

import torch
from torch import nn

from cones.interfaces.pictures import Features
from cones.interfaces.texts import Prompts, TextEmbeds
from cones.methods.sentences import drawn_sentences


class FixedSentences(nn.Module):
    """Sentences as the text encoder embeds them, nothing searched."""

    def __init__(self, sentences: TextEmbeds) -> None:
        super().__init__()
        for name in ("embeds", "mask", "owner", "pooled"):
            self.register_buffer(name, getattr(sentences, name))

    def forward(
        self, names: Sequence[str], features: Features | None = None, generator: torch.Generator | None = None
    ) -> Prompts:
        sentences = TextEmbeds(self.embeds, self.mask, self.owner, self.pooled)
        return Prompts(text_embeds=sentences.at(drawn_sentences(len(self.embeds), features, generator)))


class FixedText(nn.Module):
    """The class names as the text encoder embeds them (Radford et al. 2021). Nothing is searched."""

    def __init__(self, text: TextEmbeds) -> None:
        super().__init__()
        for name in ("embeds", "mask", "owner", "pooled"):
            self.register_buffer(name, getattr(text, name))

    def forward(
        self, names: Sequence[str], features: Features | None = None, generator: torch.Generator | None = None
    ) -> Prompts:
        return Prompts(text_embeds=TextEmbeds(self.embeds, self.mask, self.owner, self.pooled))
