"""Personalised generation: what a picture is told with is one of some sentences that the concept stands in."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cones.interfaces.protocols import Features, Prompts, TextEmbeds, TextTokens, with_rows


def drawn_sentences(count: int, features: Features | None, generator: torch.Generator | None) -> Tensor:
    """Which of `count` sentences each picture of a batch is told with: a random one, without a generator they take
    turns; without pictures all of them, in order."""
    if features is None:
        return torch.arange(count)
    pictures = len(features.views)
    if generator is None:
        return torch.arange(pictures) % count
    return torch.randint(count, (pictures,), generator=generator)


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


def places_of(owner: Tensor, rows: str | int) -> Bool[Tensor, "s t"]:
    """Where `rows` of sentences are searched: the concept's own, `all`, or the last so many."""
    if rows == "own":
        return owner == 0
    places = torch.zeros_like(owner, dtype=torch.bool)
    places[:, 0 if rows == "all" else -int(rows) :] = True
    return places


def fitted(vectors: Float[Tensor, "m d"], n: int | None) -> Float[Tensor, "n d"]:
    """The first `n` of some vectors, which come again where they are fewer; None: as they are."""
    return vectors if n is None else vectors[torch.arange(n, device=vectors.device) % len(vectors)]


def apart(rows: Float[Tensor, "n d"], generator: torch.Generator) -> Float[Tensor, "n d"]:
    """Rows moved a little, where some are equal, or they would stay so for ever."""
    if len(rows.unique(dim=0)) == len(rows):
        return rows
    return rows + 0.1 * rows.std() * torch.randn(rows.shape, generator=generator).to(rows)
