"""Views of pictures that are encoded as they are asked for, with what a method adds in the image encoder."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cones.data.prepared import Split
from cones.features.store import FeatureStore
from cones.features.views import view_of
from cones.interfaces.pictures import WHOLE, Features, Instances, Share
from cones.interfaces.protocols import OneSize

PIXELS = 2**30
"""Bytes of views that are kept: in half precision, about 3,500 of 224 pixels a side."""
AT_ONCE = 64
"""Pictures that are encoded at once where no gradients are on, whatever is asked for: each layer holds all of them."""


@dataclass(frozen=True)
class LiveCrops:
    """The pictures of a store in the same views, encoded anew as they are asked for: with visual tokens that train.

    A picture is read once for all its views, and these are cut and normalised once, as far as `PIXELS` bytes hold them.
    Plain views are exact, as those of the test are; the others are in half precision whether they are kept or not, so
    that this decides no result.
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

    def sample(self, size: int, generator: torch.Generator, share: Share = WHOLE) -> Features:
        """A batch to train on: different pictures drawn at random, each in a random view; what a share has of it."""
        rows, views, part = self.store.drawn(size, generator, share)
        return replace(self.batch(rows, views), part=part)

    def batches(self, size: int, share: Share = WHOLE) -> Iterator[Features]:
        """All once in their plain view, in half precision and back, as kept features are and so those of the test; of
        each batch what a share has."""
        for rows, part in share.batches(len(self), min(size, AT_ONCE)):
            with torch.no_grad():
                features = self.batch(rows)
            halves = {name: t.half().float() for name, t in features.tensors.items()}
            yield replace(features, tensors=halves, part=part)

    def _view(self, index: int, view: int) -> Float[Tensor, "3 h w"]:
        if (index, view) in self._pixels:
            return self._pixels[index, view].float()
        row = self.rows[index]
        picture = self.split.picture(row)

        def pixels_of(views: list[int]) -> Float[Tensor, "b 3 h w"]:
            return self.backbone.pixels([view_of(picture, v, row, self.min_crop, self.seed) for v in views])

        asked = pixels_of([view])[0]
        if (len(self._pixels) + self.views) * asked.nbytes <= PIXELS:
            others = [v for v in range(self.views) if v != view]
            made = [asked, *(pixels_of(others) if others else ())]
            self._pixels.update({(index, v): p.half() if v else p for v, p in zip([view, *others], made)})
        return asked.half().float() if view else asked
