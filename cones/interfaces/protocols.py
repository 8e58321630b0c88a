"""What methods, backbones and tasks hand to each other: the narrow waist.

Axes: B images, C classes, T text tokens, d width of a site, m visual tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

Slot = Literal["before", "around", "after", "name"]


@dataclass(frozen=True)
class Instances:
    """Objects in an image or a view of one: `boxes` xyxy in its absolute pixels, `labels` class indices.

    Predicted ones have `scores` in [0, 1] as well. Truth may have `crowd`, True for a region that is neither counted
    nor punished, and `crops`: each object's mask cut to its box and resized, which is what a mask head learns.
    `regions` are masks as COCO's compressed run lengths, which take a hundredth of the room.
    """

    boxes: Float[Tensor, "n 4"]
    labels: Int[Tensor, " n"]
    masks: Bool[Tensor, "n h w"] | None = None
    scores: Float[Tensor, " n"] | None = None
    crowd: Bool[Tensor, " n"] | None = None
    crops: Float[Tensor, "n s s"] | None = None
    regions: tuple[dict[str, Any], ...] | None = None

    def to(self, device: torch.device | str) -> "Instances":
        """The same on a device."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        return Instances(**{name: t.to(device) if isinstance(t, Tensor) else t for name, t in held.items()})


@dataclass(frozen=True)
class Grounded:
    """A picture with phrases about it, to pretrain a detector on: `pixels` uint8, boxes and masks of its things, which
    things each phrase is true of, and the kinds of each thing (an index for its name, its texture, its colour)."""

    pixels: UInt8[Tensor, "3 h w"]
    boxes: Float[Tensor, "n 4"]
    masks: Bool[Tensor, "n h w"]
    phrases: tuple[str, ...]
    matches: Bool[Tensor, "n p"]
    kinds: Int[Tensor, "n k"]


@dataclass(frozen=True)
class Geometry:
    """Where a view came from. Sizes are (height, width) in pixels; `content` is the view without its padding."""

    original: tuple[int, int]
    content: tuple[int, int]
    padded: tuple[int, int]
    flipped: bool = False


@dataclass(frozen=True)
class Features:
    """All of a batch of images that does not depend on the text, with what belongs to these views of them.

    `tensors` have B first. CLIP: `image` (B, d), of unit length. GLIP: a (B, channels, height, width) a pyramid level.
    Stable Diffusion: `mean` and `std` of the VAE latent. `views` says which view of each image it is; 0 is plain.
    """

    tensors: dict[str, Tensor]
    views: Int[Tensor, " b"]
    labels: Int[Tensor, " b"] | None = None
    instances: tuple[Instances, ...] | None = None
    geometry: tuple[Geometry, ...] | None = None

    def to(self, device: torch.device | str) -> "Features":
        """The same on a device."""
        if self.views.device == torch.device(device):
            return self
        return replace(
            self,
            tensors={name: t.to(device) for name, t in self.tensors.items()},
            views=self.views.to(device),
            labels=None if self.labels is None else self.labels.to(device),
            instances=None if self.instances is None else tuple(i.to(device) for i in self.instances),
        )


@dataclass(frozen=True)
class TextEmbeds:
    """What the text encoder hands over. First axis 1: shared by all images; B: one prompt an image.

    `mask` is True where a token is real; `owner` is the class a token belongs to, -1 for context and separators; it
    is (B, T) where the sentences of images differ. CLIP has one token a class, in the joint space. `pooled` is for
    models that want a sentence vector as well.
    """

    embeds: Float[Tensor, "b t d"]
    mask: Bool[Tensor, "b t"]
    owner: Int[Tensor, "*b t"]
    pooled: Float[Tensor, "b d2"] | None = None

    def to(self, device: torch.device | str) -> "TextEmbeds":
        """The same on a device."""
        pooled = None if self.pooled is None else self.pooled.to(device)
        return TextEmbeds(self.embeds.to(device), self.mask.to(device), self.owner.to(device), pooled)

    def at(self, places: Int[Tensor, " n"]) -> "TextEmbeds":
        """Some of the texts, by their places on the first axis."""
        places = places.to(self.embeds.device)
        owner = self.owner[places] if self.owner.ndim == 2 else self.owner
        pooled = None if self.pooled is None else self.pooled[places]
        return TextEmbeds(self.embeds[places], self.mask[places], owner, pooled)

    def in_turns(self, pictures: int) -> "TextEmbeds":
        """A text for each of some pictures: they take turns. One that is for all stays so."""
        return self if len(self.embeds) == 1 else self.at(torch.arange(pictures) % len(self.embeds))

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


@dataclass(frozen=True)
class Predictions:
    """What a backbone says of B images: `scores` (B, C), the probability of each class, in detection its best box's; in
    generation minus the loss of denoising each image on fixed noise, (B, 1)."""

    scores: Float[Tensor, "b c"]
    instances: tuple[Instances, ...] | None = None


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
