"""Views of pictures that are encoded as they are asked for, with what a method adds in the image encoder."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cones.data.prepared import Split
from cones.features.store import IN_MEMORY, FeatureStore
from cones.features.views import view_of
from cones.interfaces.pictures import Features, Instances
from cones.interfaces.protocols import OneSize


@dataclass(frozen=True)
class LiveCrops:
    """The pictures of a store in the same views, encoded anew as they are asked for: with visual tokens that train.

    A view is read, cut and normalised once, as far as `IN_MEMORY` bytes hold them.
    """

    store: FeatureStore
    split: Split
    rows: list[int]
    """Where the store's pictures stand in the split."""
    backbone: OneSize
    visual_tokens: Callable[[], Float[Tensor, "l m d"] | None]
    """Those of now, with gradients where they are on."""
    min_crop: float
    seed: int
    _pixels: dict[tuple[int, int], Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def views(self) -> int:
        return self.store.views

    @property
    def labels(self) -> Int[Tensor, " n"]:
        return self.store.labels

    @property
    def truths(self) -> list[Instances]:
        return self.store.truths

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return self.store.sizes

    def __len__(self) -> int:
        return len(self.store)

    def batch(self, indices: Int[Tensor, " b"], views: Int[Tensor, " b"] | None = None) -> Features:
        """Pictures by their index (B,), each in the view asked for (B,), with gradients where they are on."""
        views = torch.zeros_like(indices) if views is None else views
        pixels = torch.stack([self._view(i, v) for i, v in zip(indices.tolist(), views.tolist())])
        tensors = dict(self.backbone.encode(pixels, self.visual_tokens()))
        return Features(tensors, views.to(self.backbone.device), self.labels[indices].to(self.backbone.device))

    def sample(self, size: int, generator: torch.Generator) -> Features:
        """A batch to train on: different pictures drawn at random, each in a random view."""
        return self.batch(*self.store.drawn(size, generator))

    def batches(self, size: int) -> Iterator[Features]:
        """All once in their plain view, in half precision and back, as kept features are and so those of the test."""
        for rows in torch.arange(len(self)).split(size):
            with torch.no_grad():
                features = self.batch(rows)
            yield replace(features, tensors={name: t.half().float() for name, t in features.tensors.items()})

    def _view(self, index: int, view: int) -> Float[Tensor, "3 h w"]:
        if (index, view) in self._pixels:
            return self._pixels[index, view]
        row = self.rows[index]
        seen = view_of(self.split.picture(row), view, row, self.min_crop, self.seed)
        pixels = self.backbone.pixels([seen])[0]
        if (len(self._pixels) + 1) * pixels.nbytes <= IN_MEMORY:
            self._pixels[index, view] = pixels
        return pixels
