"""Pictures that are encoded as they are asked for, where their features cannot be kept: what encodes them trains."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cones.data import Split
from cones.features import FeatureStore
from cones.types import Features


@dataclass(frozen=True)
class LivePictures:
    """The pictures of a store, encoded anew as they are asked for: what encodes them is being trained."""

    store: FeatureStore
    split: Split
    rows: list[int]
    """Where the store's pictures stand in the split."""
    backbone: Any
    canvas: tuple[int, int]
    """Height and width that they are fitted into."""

    @property
    def views(self) -> int:
        return self.store.views

    def __len__(self) -> int:
        return len(self.store)

    def batch(self, rows: Tensor, views: Tensor) -> Features:
        """Pictures by their index (B,), each in the view asked for (B,), with gradients where they are on."""
        assert self.store.targets is not None, "these features carry no objects"
        pixels = [
            self.backbone.view([self.split.picture(self.rows[row])], self.canvas, flipped=bool(view))[0]
            for row, view in zip(rows.tolist(), views.tolist())
        ]
        instances, geometry = self.store.targets.batch(rows.tolist(), views.tolist())
        return Features(self.backbone.pyramid(torch.cat(pixels)), views, instances=instances, geometry=geometry)

    def batches(self, size: int) -> Iterator[Features]:
        """All once in their plain view, in half precision and back, as kept features are and so those of the test."""
        for rows in torch.arange(len(self)).split(size):
            features = self.batch(rows, torch.zeros_like(rows))
            yield replace(features, tensors={name: t.half().float() for name, t in features.tensors.items()})


Pictures = FeatureStore | LivePictures
