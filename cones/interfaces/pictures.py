"""What stands for the picture side of a model: features of views, their objects, and what is predicted."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


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
class Predictions:
    """What a backbone says of B images: `scores` (B, C), the probability of each class, in detection its best box's; in
    generation minus the loss of denoising each image on fixed noise, (B, 1)."""

    scores: Float[Tensor, "b c"]
    instances: tuple[Instances, ...] | None = None
