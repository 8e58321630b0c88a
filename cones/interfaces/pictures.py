"""What stands for the picture side of a model: features of views, their objects, and what is predicted."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

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
class Part:
    """Which of a batch's `whole` pictures some are: those from `start` to before `stop`."""

    start: int
    stop: int
    whole: int

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def weight(self) -> float:
        """The share that they are of the batch."""
        return (self.stop - self.start) / self.whole


@dataclass(frozen=True)
class Share:
    """What one of some processes takes of each batch: a stretch of it, as long as those of the others or by one picture
    longer or shorter."""

    process: int = 0
    processes: int = 1

    def of(self, count: int) -> Part:
        """Its part of a batch of `count` pictures; without any for the last of more processes than pictures."""
        size, more = divmod(count, self.processes)
        start = self.process * size + min(self.process, more)
        return Part(start, start + size + (self.process < more), count)

    def batches(self, count: int, size: int) -> Iterator[tuple[Int[Tensor, " b"], Part]]:
        """Its rows of `count` pictures, which all go through in batches of `size`, in order."""
        for rows in torch.arange(count).split(size):
            part = self.of(len(rows))
            if part.stop > part.start or self.processes == 1:
                yield rows[part.rows], part


WHOLE = Share()
"""That of a process that has no others beside it."""


@dataclass(frozen=True)
class Features:
    """All of a batch of images that does not depend on the text, with what belongs to these views of them.

    `tensors` have B first. CLIP: `image` (B, d), of unit length. GLIP: a (B, channels, height, width) a pyramid level.
    Stable Diffusion: `mean` and `std` of the VAE latent. `views` says which view of each image it is; 0 is plain.
    `part` says which they are of a batch that several processes share.
    """

    tensors: dict[str, Tensor]
    views: Int[Tensor, " b"]
    labels: Int[Tensor, " b"] | None = None
    instances: tuple[Instances, ...] | None = None
    geometry: tuple[Geometry, ...] | None = None
    part: Part | None = None

    def draw(self, draw: Callable[[int], Tensor], each: int = 1) -> Tensor:
        """What `draw` gives for these images, `each` a number of places: it is asked for as many as the whole batch
        has, so that a draw does not depend on how many processes share it."""
        if self.part is None:
            return draw(each * len(self.views))
        return draw(each * self.part.whole)[each * self.part.start : each * self.part.stop]

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


def mean_loss(scores: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> float:
    """The mean cross entropy of the probabilities of true classes."""
    picked = scores.gather(1, labels[:, None]).clamp_min(torch.finfo(torch.float32).tiny)
    return float(-picked.log().mean())


@runtime_checkable
class Pictures(Protocol):
    """Pictures that are trained and validated on: kept features, or pictures that are encoded as they are asked for.

    As the truth they have `labels` (N,), or `truths` with `sizes`.
    """

    @property
    def labels(self) -> Int[Tensor, " n"]:
        """The class of each picture (N,); -1 where it has objects."""
        ...

    @property
    def views(self) -> int:
        """In how many views each can be had; 0 is the plain one."""
        ...

    @property
    def truths(self) -> Sequence[Instances]:
        """The objects of each picture in its own pixels; none where the pictures have classes."""
        ...

    @property
    def sizes(self) -> Sequence[tuple[int, int]]:
        """(height, width) of each picture that has objects."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Int[Tensor, " b"], views: Int[Tensor, " b"] | None = None) -> Features:
        """Some pictures, each in the view asked for; the plain one if none is."""
        ...

    def batches(self, size: int, share: Share = WHOLE) -> Iterator[Features]:
        """All pictures once in their plain view, in order; of each batch what a share has."""
        ...

    def sample(self, size: int, generator: torch.Generator, share: Share = WHOLE) -> Features:
        """A batch to train on: different pictures drawn at random, each in a random view; what a share has of it."""
        ...
