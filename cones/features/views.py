"""Pictures through a frozen image encoder, in views, into a feature cache; with their objects or masks."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from cones.data.pictures import random_view
from cones.data.prepared import Split
from cones.features.store import FeatureStore, write_features
from cones.interfaces.protocols import OneSize, Paints


def view_of(picture: Image.Image, view: int, row: int, min_crop: float, seed: int, flip: bool = True) -> Image.Image:
    """A view of the picture that is `row` of its split: 0 plain, the others random crops and, unless told, flips."""
    return random_view(picture, min_crop, np.random.default_rng([seed, view, row]), flip) if view else picture


@torch.inference_mode()
def encode_split(
    backbone: OneSize,
    split: Split,
    rows: list[int],
    views: int,
    min_crop: float,
    seed: int,
    target: Path,
    on_batch: Callable[[int], None] = lambda done: None,
    flip: bool = True,
    on_pictures: Callable[[list[Image.Image]], None] = lambda pictures: None,
    visual_tokens: Float[Tensor, "l m v"] | None = None,
) -> FeatureStore:
    """Features of some pictures of a split, in views as `view_of` gives them, with visual tokens if there are any.
    Where the pictures have masks, these are cut likewise.

    Each picture is opened once for all its views; `on_pictures` is shown each batch of them as they are.
    """
    records = [split.records[i] for i in rows]
    masked = any(r.mask for r in records)

    def open_pictures(chosen: Sequence[int]) -> Callable[[int], dict[str, Tensor]]:
        pictures = [split.picture(rows[i]) for i in chosen]
        masks = []
        if masked:
            masks = [split.mask(rows[i]) or Image.new("L", p.size, 255) for i, p in zip(chosen, pictures)]
        on_pictures(pictures)

        def seen(images: list[Image.Image], view: int) -> list[Image.Image]:
            return [view_of(p, view, rows[i], min_crop, seed, flip) for p, i in zip(images, chosen)]

        def encode(view: int) -> dict[str, Tensor]:
            tensors = dict(backbone.encode(backbone.pixels(seen(pictures, view)), visual_tokens))
            if masked:
                tensors["mask"] = cast(Paints, backbone).cells(seen(masks, view))
            return tensors

        return encode

    ids, labels = [r.id for r in records], [r.label for r in records]
    return write_features(target, ids, labels, views, open_pictures, on_batch=on_batch)
