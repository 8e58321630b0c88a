"""What a backbone is to all other rooms: the narrow waist.

`Backbone` is what all have; the protocols after it say what some families have besides. Axes: B images, C classes, T
text tokens, d width of a site, m visual tokens, L layers.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from PIL import Image
from pydantic import BaseModel
from torch import Tensor, nn

from cones.common.errors import BackboneError
from cones.interfaces.pictures import Features, Geometry, Predictions
from cones.interfaces.texts import Prompts, TextEmbeds, TextTokens

Loss = Callable[[Features, TextEmbeds, torch.Generator | None], Float[Tensor, ""]]
"""Features of a batch and their texts to what is minimised; whatever it draws comes from the generator."""
PROMPTS = tuple(f.name for f in fields(Prompts))
"""The names that sites have."""


@dataclass(frozen=True)
class Site:
    """A place where a method may put vectors: their width, how many layers take them, how many fit; in an image encoder
    also the side of its patches in pixels."""

    width: int
    depth: int = 1
    max_tokens: int | None = None
    patch_size: int | None = None


@runtime_checkable
class Backbone(Protocol):
    """A frozen vision-language model, cut where prompts go in.

    `sites` are named as the fields of `Prompts`: text_tokens, text_embeds, visual_tokens. `text_encoder_calls` counts
    how often the text encoder ran over the classes; where each picture has a text of its own, once for each.
    """

    device: torch.device
    sites: dict[str, Site]
    text_encoder_calls: int

    @property
    def family(self) -> str:
        """What it has in common with others that a method works on."""
        ...

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What is done to a picture before it is encoded, as a Concept records it."""
        ...

    def encode(
        self, pixels: Float[Tensor, "b 3 h w"], visual_tokens: Float[Tensor, "l m v"] | None = None
    ) -> Mapping[str, Tensor]:
        """The `tensors` of Features for a batch of preprocessed pictures; gradients reach the visual tokens, if any."""
        ...

    def embed_text(
        self, names: Sequence[str], tokens: TextTokens | None = None, templates: Sequence[str] = ("{}",)
    ) -> TextEmbeds:
        """Run the text encoder on class names: in templates, averaged, or with a method's own token vectors."""
        ...

    def word_vectors(self, words: str) -> Float[Tensor, "n d"]:
        """The vectors of some words at the text encoder's input."""
        ...

    def objective(self, settings: BaseModel | None = None) -> Loss:
        """What is minimised, as the settings of a method or a fine-tuning say it; None: as it is usual."""
        ...

    def predict(self, features: Features, text: TextEmbeds) -> Predictions:
        """What the model sees, given these texts."""
        ...

    def part(self, name: str) -> nn.Module:
        """A part of it by the name it has in the state dict, loaded if it is not yet."""
        ...

    def use_weights(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Put fine-tuned weights, by their names in the state dict, over its own; `about` says how they are used."""
        ...


@runtime_checkable
class OneSize(Backbone, Protocol):
    """Its pictures all have one size."""

    def pixels(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "b 3 h w"]:
        """Resize, crop and normalise pictures as it expects them."""
        ...


@runtime_checkable
class DualEncoder(OneSize, Protocol):
    """Pictures and texts meet in one space: CLIP and its kin."""

    logit_scale: float
    """What similarities are multiplied by."""


@runtime_checkable
class Attends(DualEncoder, Protocol):
    """It can be asked what its image encoder looks at."""

    def attention(
        self, pixels: Float[Tensor, "b 3 h w"], visual_tokens: Float[Tensor, "l m v"]
    ) -> Float[Tensor, "b q rows columns"]:
        """How much CLS and, after it, each visual token attend to each patch in the last layer, in [0, 1]."""
        ...


@runtime_checkable
class Adapts(Backbone, Protocol):
    """Low-rank additions can be trained on it."""

    def lora_layers(self) -> tuple[str, list[str] | None]:
        """The part that they go to, and which of its linear layers; None: all."""
        ...


@runtime_checkable
class Grounding(Adapts, Protocol):
    """Finds what texts name: boxes of any number in pictures of any size, fitted into a canvas (height, width)."""

    @property
    def largest_side(self) -> int:
        """The longest side in pixels that a canvas for pictures of any size has."""
        ...

    def canvas(self, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """The canvas that pictures of these sizes (height, width) all fit into once they are resized."""
        ...

    def view(
        self, pictures: Sequence[Image.Image], canvas: tuple[int, int], flipped: bool = False, scale: float = 1.0
    ) -> tuple[Float[Tensor, "b 3 h w"], tuple[Geometry, ...]]:
        """Pictures resized, normalised and padded into a canvas, mirrored if asked for; `scale` makes them smaller."""
        ...

    def predict(self, features: Features, text: TextEmbeds, least: float = 0.0) -> Predictions:
        """Boxes with a score of at least `least`, in the pixels of the original pictures."""
        ...

    def pyramid(self, pixels: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        """As `encode`, with gradients where the image encoder is trained."""
        ...


@runtime_checkable
class DrawsMasks(Grounding, Protocol):
    """It has a mask head, or can be given one."""

    @property
    def has_masks(self) -> bool:
        """Whether it has one."""
        ...

    def crop_masks(self, masks: Bool[Tensor, "n h w"], boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n s s"]:
        """Masks cut to their boxes, as the mask head is to draw them."""
        ...

    def add_mask_head(self, seed: int) -> dict[str, Any]:
        """Give it a mask head with random weights; returns the settings it can be built again by."""
        ...


@runtime_checkable
class Paints(OneSize, Adapts, Protocol):
    """Makes pictures of texts: Stable Diffusion and its kin."""

    @property
    def tokenizer(self) -> Any:
        """That of its text encoder."""
        ...

    def cells(self, masks: Sequence[Image.Image]) -> Float[Tensor, "b 1 y x"]:
        """Masks at the resolution of its latents."""
        ...

    def sample(
        self,
        embeds: Float[Tensor, "b t d"],
        unconditional: Float[Tensor, "1 t d"],
        seed: int,
        steps: int = ...,
        guidance: float = ...,
        first: int = 0,
    ) -> list[Image.Image]:
        """A picture for each text; the i-th one's noise comes from (seed, first + i)."""
        ...

    def embed_prompt(self, prompt: str, vectors: Mapping[str, Float[Tensor, "n d"]]) -> TextEmbeds:
        """A prompt with vectors in the places of `{}` and `{name}`."""
        ...


def refuse_missing_sites(sites: Collection[str], backbone: Backbone, method: str = "the call") -> None:
    """`BackboneError` for a method that gives prompts for sites which the backbone has not. It loads no weights."""
    for site in PROMPTS:
        if site in sites and site not in backbone.sites:
            there = ", ".join(backbone.sites)
            raise BackboneError(
                f"{method} gives {site.replace('_', ' ')}, and a {backbone.family} backbone such as this one has no "
                f"site for them; it takes {there}"
            )


def prompts_of(
    method: nn.Module,
    backbone: Backbone,
    names: Sequence[str],
    features: Features | None = None,
    generator: torch.Generator | None = None,
) -> Prompts:
    """What a method gives, refused where the backbone has no site for it."""
    prompts: Prompts = method(names, features, generator)
    given = [site for site in PROMPTS if getattr(prompts, site) is not None]
    refuse_missing_sites(given, backbone, type(method).__name__)
    return prompts


def text_of(
    method: nn.Module,
    backbone: Backbone,
    names: Sequence[str],
    features: Features | None = None,
    generator: torch.Generator | None = None,
) -> TextEmbeds:
    """The text side that a method's prompts make; the text encoder runs only if they enter before it."""
    return told_by(prompts_of(method, backbone, names, features, generator), backbone, names)


def told_by(prompts: Prompts, backbone: Backbone, names: Sequence[str]) -> TextEmbeds:
    """The text side that prompts make."""
    if prompts.text_embeds is not None:
        return prompts.text_embeds
    return backbone.embed_text(names, prompts.text_tokens)
