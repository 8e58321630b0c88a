"""Pictures through a frozen image encoder, in views, into a feature cache; with their objects or masks."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cones.data.pictures import random_view
from cones.data.prepared import Record, Split
from cones.features.store import FeatureStore, write_features
from cones.features.targets import Picture, write_targets
from cones.interfaces.protocols import Geometry

DETECTION_BATCH = 16


@torch.inference_mode()
def encode_split(
    backbone: Any,
    split: Split,
    rows: list[int],
    views: int,
    min_crop: float,
    seed: int,
    target: Path,
    on_batch: Callable[[int], None] = lambda done: None,
    flip: bool = True,
    on_pictures: Callable[[list[Image.Image]], None] = lambda pictures: None,
) -> FeatureStore:
    """Features of some pictures of a split: view 0 plain, the others random crops and, unless told, flips. Where the
    pictures have masks, these are cut likewise.

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
            if not view:
                return images
            streams = (np.random.default_rng([seed, view, rows[i]]) for i in chosen)
            return [random_view(p, min_crop, rng, flip) for p, rng in zip(images, streams)]

        def encode(view: int) -> dict[str, Tensor]:
            tensors = dict(backbone.encode(backbone.pixels(seen(pictures, view))))
            if masked:
                tensors["mask"] = backbone.cells(seen(masks, view))
            return tensors

        return encode

    ids, labels = [r.id for r in records], [r.label for r in records]
    return write_features(target, ids, labels, views, open_pictures, on_batch=on_batch)


def picture_of(record: Record, geometry: Geometry | None) -> Picture:
    objects = record.objects or ()
    size = record.size or (0, 0)
    return Picture(
        geometry or Geometry(size, size, size),
        [o.box for o in objects],
        [o.label for o in objects],
        [o.mask for o in objects],
        [o.crowd for o in objects],
    )


def _counted(pictures: Sequence[Picture]) -> Iterator[tuple[Picture, list[int]]]:
    """Pictures with which of their objects are no crowds."""
    for picture in pictures:
        yield picture, [i for i, crowd in enumerate(picture.crowd) if not crowd]


def encode_objects(
    backbone: Any,
    split: Split,
    rows: list[int],
    views: int,
    canvas: tuple[int, int],
    target: Path,
    on_batch: Callable[[int], None] = lambda done: None,
) -> FeatureStore:
    """Features of some pictures of a split and the objects in them: view 0 plain, view 1 its mirror image.

    All are fitted into one canvas (height, width). Mask targets are cut once, here, and not at every step.
    """
    records = [split.records[i] for i in rows]
    ordered: list[Picture] = []

    def open_pictures(chosen: Sequence[int]) -> Callable[[int], dict[str, Tensor]]:
        pictures = [split.picture(rows[i]) for i in chosen]

        def encode(view: int) -> dict[str, Tensor]:
            pixels, geometry = backbone.view(pictures, canvas, flipped=bool(view))
            if not view:
                ordered.extend(picture_of(records[i], g) for i, g in zip(chosen, geometry))
            return dict(backbone.encode(pixels))

        return encode

    def write_more(folder: Path) -> None:
        crops = None
        if all(p.has_masks for p in ordered):
            crops = torch.cat([backbone.crop_masks(p.bitmaps()[k], p.truth().boxes[k]) for p, k in _counted(ordered)])
        write_targets(folder, ordered, crops)

    ids = [r.id for r in records]
    return write_features(target, ids, [-1] * len(ids), views, open_pictures, DETECTION_BATCH, on_batch, write_more)
