"""ConES in generation: embeddings at some places of the encoder's output for sentences."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cones.interfaces.pictures import Features
from cones.interfaces.texts import Prompts, TextEmbeds, with_rows
from cones.methods.sentences import drawn_sentences


class SentenceCones(nn.Module):
    """ConES in generation (arXiv 2305.18993, section 3): `embeds` (n, d) stand at some places of the encoder's output
    for each of some sentences; its other rows are kept from one pass of the encoder, frozen.

    So the encoder never runs in the search, and a sentence still steers the picture.
    """

    def __init__(self, sentences: TextEmbeds, places: Bool[Tensor, "s t"], start: Float[Tensor, "n d"]) -> None:
        super().__init__()
        self.embeds = nn.Parameter(start.clone())
        self.register_buffer("context", sentences.embeds.clone())
        self.register_buffer("places", places.clone())
        self.register_buffer("mask", sentences.mask.clone())
        self.register_buffer("pooled", sentences.pooled)

    def forward(
        self, names: Sequence[str], features: Features | None = None, generator: torch.Generator | None = None
    ) -> Prompts:
        sentences = TextEmbeds(self.context, self.mask, self.places.long() - 1, self.pooled)
        chosen = sentences.at(drawn_sentences(len(self.context), features, generator))
        embeds = with_rows(chosen.embeds, chosen.owner == 0, self.embeds)
        return Prompts(text_embeds=replace(chosen, embeds=embeds))


def places_of(owner: Tensor, rows: str | int) -> Bool[Tensor, "s t"]:
    """Where `rows` of sentences are searched: the concept's own, `all`, or the last so many."""
    if rows == "own":
        return owner == 0
    places = torch.zeros_like(owner, dtype=torch.bool)
    places[:, 0 if rows == "all" else -int(rows) :] = True
    return places
