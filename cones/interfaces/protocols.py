"""What methods, backbones and tasks hand to each other: the narrow waist.

Axes: B images, C classes, T text tokens, d width of a site, m visual tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cones.common.errors import BackboneError
from cones.interfaces.pictures import Features, Predictions
from cones.interfaces.texts import TextEmbeds, TextTokens


@dataclass(frozen=True)
class Site:
    """A place where a method may put vectors: their width, how many layers take them, how many fit."""

    width: int
    depth: int = 1
    max_tokens: int | None = None


@runtime_checkable
class Backbone(Protocol):
    """A frozen vision-language model, cut where prompts go in."""

    sites: dict[str, Site]
    text_encoder_calls: int

    def encode(self, pixels: Float[Tensor, "b 3 h w"]) -> Mapping[str, Tensor]:
        """The `tensors` of Features for a batch of preprocessed pictures."""
        ...

    def embed_text(
        self, names: Sequence[str], tokens: TextTokens | None = None, templates: Sequence[str] = ("{}",)
    ) -> TextEmbeds:
        """Run the text encoder on class names: in templates, averaged, or with a method's own token vectors."""
        ...

    def word_vectors(self, words: str) -> Float[Tensor, "n d"]:
        """The vectors of some words at the text encoder's input."""
        ...

    def loss(self, features: Features, text: TextEmbeds, generator: torch.Generator | None = None) -> Float[Tensor, ""]:
        """What a search minimises."""
        ...

    def predict(self, features: Features, text: TextEmbeds) -> Predictions:
        """What the model sees, given these texts."""
        ...


def text_of(
    method: nn.Module,
    backbone: Backbone,
    names: Sequence[str],
    features: Features | None = None,
    generator: torch.Generator | None = None,
) -> TextEmbeds:
    """The text side that a method's prompts make; the text encoder runs only if they enter before it.

    `BackboneError` for prompts that enter the image encoder: kept features know nothing of them.
    """
    prompts = method(names, features, generator)
    if prompts.visual_tokens is not None:
        raise BackboneError(
            f"{type(method).__name__} gives visual tokens, which a search on kept features has no place for"
        )
    if prompts.text_embeds is not None:
        return prompts.text_embeds
    return backbone.embed_text(names, prompts.text_tokens)
