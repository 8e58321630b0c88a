"""What stands for the text side of a model: prompts, and what the text encoder hands over.

Axes: B images, C classes, T text tokens, d width of a site, m visual tokens.
"""

from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Slot = Literal["before", "around", "after", "name"]


@dataclass(frozen=True)
class KeyedPictures:
    """Pictures that tell what others like them show (Tip-Adapter, Zhang et al. 2022, section 3.1).

    Each adds alpha exp(-beta (1 - x key)) to the logit of its class, for a picture whose feature x has unit length:
    `keys` (N, d), their `labels` (N,), and `scale` with alpha and beta.
    """

    keys: Float[Tensor, "n d"]
    labels: Int[Tensor, " n"]
    scale: Float[Tensor, " 2"]

    def logits(self, image: Float[Tensor, "b d"], classes: int) -> Float[Tensor, "b c"]:
        """What they add for pictures (b, d)."""
        alpha, beta = self.scale
        near = alpha * torch.exp(beta * (image @ self.keys.T - 1))
        return near.new_zeros(len(image), classes).index_add(1, self.labels, near)

    def to(self, device: torch.device | str) -> "KeyedPictures":
        """The same on a device."""
        return KeyedPictures(self.keys.to(device), self.labels.to(device), self.scale.to(device))


@dataclass(frozen=True)
class TextEmbeds:
    """What the text encoder hands over. First axis 1: shared by all images; B: one prompt an image.

    `mask` is True where a token is real; `owner` is the class a token belongs to, -1 for context and separators; it
    is (B, T) where the sentences of images differ. CLIP has one token a class, in the joint space. `pooled` is for
    models that want a sentence vector as well. On dual encoders, with a `bias` the embeddings are the weights of a
    linear classifier, in the place of cosine similarities, and `pictures` add to the logits.
    """

    embeds: Float[Tensor, "b t d"]
    mask: Bool[Tensor, "b t"]
    owner: Int[Tensor, "*b t"]
    pooled: Float[Tensor, "b d2"] | None = None
    bias: Float[Tensor, " t"] | None = None
    pictures: KeyedPictures | None = None

    def to(self, device: torch.device | str) -> "TextEmbeds":
        """The same on a device."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        return TextEmbeds(**{name: None if of is None else of.to(device) for name, of in held.items()})

    def at(self, places: Int[Tensor, " n"]) -> "TextEmbeds":
        """Some of the texts, by their places on the first axis."""
        places = places.to(self.embeds.device)
        owner = self.owner[places] if self.owner.ndim == 2 else self.owner
        pooled = None if self.pooled is None else self.pooled[places]
        return replace(self, embeds=self.embeds[places], mask=self.mask[places], owner=owner, pooled=pooled)

    def in_turns(self, pictures: int, first: int = 0) -> "TextEmbeds":
        """A text for each of some pictures, of which `first` is the place of the first: they take turns. One that is
        for all stays so."""
        return self if len(self.embeds) == 1 else self.at((first + torch.arange(pictures)) % len(self.embeds))

    @staticmethod
    def one_per_class(embeds: Float[Tensor, "*b c d"]) -> "TextEmbeds":
        """One token for each class, in class order."""
        embeds = embeds if embeds.ndim == 3 else embeds[None]
        classes = embeds.shape[1]
        mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        return TextEmbeds(embeds, mask, torch.arange(classes, device=embeds.device))


def with_rows(
    embeds: Float[Tensor, "s t d"], places: Bool[Tensor, "s t"], rows: Float[Tensor, "n d"], times: int = 1
) -> Float[Tensor, "s t d"]:
    """Sentences with `rows` in their places, of which each has n, or where they come again `times` n."""
    return embeds.masked_scatter(places[..., None], rows.repeat(times, 1).expand(len(embeds), -1, -1))


@dataclass(frozen=True)
class TextTokens:
    """Vectors at the text encoder's input: (n, d) shared, (C, n, d) a class, (B, 1, n, d) an image.

    `slot` says where they go in the sentence: before the class name, around it, after it, or in its place. `templates`
    are the sentences of a batch of images, one each or one for all, where they take the place of `{}`.
    """

    vectors: Float[Tensor, "*lead n d"]
    slot: Slot = "before"
    templates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prompts:
    """What a method returns; a field left None leaves that site of the backbone alone.

    `visual_tokens` (depth, m, d) enter the vision encoder: depth 1 at its input, more at the first `depth` layers.
    """

    text_tokens: TextTokens | None = None
    text_embeds: TextEmbeds | None = None
    visual_tokens: Float[Tensor, "depth m d"] | None = None
