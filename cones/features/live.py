"""Pictures that are encoded as they are asked for, where their features cannot be kept: what encodes them trains."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from PIL import Image
from torch import Tensor

from cones.data.prepared import Split
from cones.features.store import IN_MEMORY, FeatureStore
from cones.interfaces.pictures import WHOLE, Features, Instances, Share
from cones.interfaces.protocols import Grounding


@dataclass(frozen=True)
class LivePictures:
    """The pictures of a store, encoded anew as they are asked for: what encodes them is being trained.

    Each is read and decoded once, as far as `IN_MEMORY` bytes hold them.
    """

    store: FeatureStore
    split: Split
    rows: list[int]
    """Where the store's pictures stand in the split."""
    backbone: Grounding
    canvas: tuple[int, int]
    """Height and width that they are fitted into."""
    least_scale: float = 1.0
    """Pictures to train on are shrunk by a random factor from this to 1."""
    colour_jitter: float = 0.0
    """By how much at most each of their channels is scaled up or down, and shifted, in standard deviations."""
    _decoded: dict[int, Image.Image] = field(default_factory=dict, init=False, repr=False, compare=False)

    def by(self, backbone: Grounding) -> "LivePictures":
        """The same pictures, encoded by another model; those that are decoded stay so."""
        other = replace(self, backbone=backbone)
        other._decoded.update(self._decoded)
        return other

    @property
    def views(self) -> int:
        return self.store.views

    @property
    def labels(self) -> Tensor:
        return self.store.labels

    @property
    def truths(self) -> list[Instances]:
        return self.store.truths

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return self.store.sizes

    def __len__(self) -> int:
        return len(self.store)

    def batch(self, rows: Tensor, views: Tensor | None = None) -> Features:
        """Pictures by their index (B,), each in the view asked for (B,), with gradients where they are on."""
        views = torch.zeros_like(rows) if views is None else views
        none = torch.zeros(len(rows), 3, 1, 1)
        return self._encoded(rows, views, [1.0] * len(rows), none + 1, none)

    def sample(self, size: int, generator: torch.Generator, share: Share = WHOLE) -> Features:
        """A batch to train on, as that of a `FeatureStore`, with gradients; size and colours of each are changed."""
        rows, views, part = self.store.drawn(size, generator, share)
        scales = torch.rand(part.whole, generator=generator).lerp(torch.ones(()), self.least_scale)[part.rows]
        drawn = torch.rand(2, part.whole, 3, 1, 1, generator=generator)[:, part.rows]
        strengths = self.colour_jitter * (2 * drawn - 1)
        features = self._encoded(rows, views, scales.tolist(), 1 + strengths[0], strengths[1])
        return replace(features, part=part)

    def _encoded(self, rows: Tensor, views: Tensor, scales: Sequence[float], gains: Tensor, shifts: Tensor) -> Features:
        """Views of pictures, shrunk and in other colours, with their objects."""
        assert self.store.targets is not None, "these features carry no objects"
        kept, plain = self.store.targets.batch(rows.tolist(), views.tolist())
        pixels, instances, geometry = [], [], []
        for i, (row, objects, before) in enumerate(zip(rows.tolist(), kept, plain)):
            shown, (after,) = self.backbone.view([self._picture(row)], self.canvas, before.flipped, scales[i])
            (h, w), (height, width) = after.content, before.content
            shown[..., :h, :w] = shown[..., :h, :w] * gains[i] + shifts[i]
            boxes = objects.boxes * torch.tensor([w / width, h / height]).repeat(2)
            pixels.append(shown)
            instances.append(replace(objects, boxes=boxes))
            geometry.append(after)
        tensors = self.backbone.pyramid(torch.cat(pixels))
        return Features(tensors, views, instances=tuple(instances), geometry=tuple(geometry))

    def _picture(self, row: int) -> Image.Image:
        if row in self._decoded:
            return self._decoded[row]
        picture = self.split.picture(self.rows[row])
        if sum(3 * p.width * p.height for p in (*self._decoded.values(), picture)) <= IN_MEMORY:
            self._decoded[row] = picture
        return picture

    def batches(self, size: int, share: Share = WHOLE) -> Iterator[Features]:
        """All once in their plain view, in half precision and back, as kept features are and so those of the test; of
        each batch what a share has."""
        for rows, part in share.batches(len(self), size):
            features = self.batch(rows, torch.zeros_like(rows))
            halves = {name: t.half().float() for name, t in features.tensors.items()}
            yield replace(features, tensors=halves, part=part)
