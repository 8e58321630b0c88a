"""Encoding a concept of detection or segmentation: pictures with their objects."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cones.backbones.settings import BackboneConfig
from cones.common.errors import BackboneError
from cones.data.prepared import Split
from cones.data.splits import draw_pictures
from cones.features.draw import Drawn, refuse_other_task
from cones.features.store import FeatureStore, write_features
from cones.features.targets import Picture, picture_of, write_targets
from cones.features.text import Told, text_tensors
from cones.interfaces.protocols import DrawsMasks
from cones.tasks.detection.settings import DetectionConcept

DETECTION_BATCH = 16


def _counted(pictures: Sequence[Picture]) -> Iterator[tuple[Picture, list[int]]]:
    """Pictures with which of their objects are no crowds."""
    for picture in pictures:
        yield picture, [i for i, crowd in enumerate(picture.crowd) if not crowd]


def encode_objects(
    backbone: DrawsMasks,
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


def draw(concept: DetectionConcept, train: Split, val: Split) -> tuple[list[int], list[int]]:
    """The training and the validation pictures, as indices; `DataError` if a class has fewer than `shots`."""
    for split in (train, val):
        refuse_other_task(concept, split)
    shown = draw_pictures(train, concept.shots, concept.seed)
    return shown, draw_pictures(val, concept.val_shots or concept.shots, concept.seed, concept.val_shots is None)


def refuse_unable(name: str, concept: DetectionConcept, backbone: DrawsMasks) -> None:
    """`BackboneError` for a base model that cannot do what the concept asks for."""
    if concept.task == "segmentation" and not backbone.has_masks:
        raise BackboneError(
            f"`{concept.backbone}` has no mask head, and the concept `{name}` asks for masks; set its task to "
            "detection and add a row `kind: mask_head` to `finetunes`, which trains one and predicts masks"
        )


def encode(
    concept: DetectionConcept,
    backbone: DrawsMasks,
    config: BackboneConfig,
    drawn: Drawn,
    out: Path,
    on_batch: Callable[[int], None],
) -> Told:
    """Features of views in one canvas with their objects, and the caption of all class names."""
    canvas = backbone.canvas(drawn.sizes)
    encode_objects(backbone, drawn.train, drawn.shown, concept.views, canvas, out / "train", on_batch)
    encode_objects(backbone, drawn.val, drawn.held, 1, canvas, out / "val", on_batch)
    templates = list(drawn.train.templates or ("{}",))
    special = {"score_threshold": concept.score_threshold, "canvas": canvas, "shots": concept.shots}
    return special, templates, text_tensors(backbone, drawn.names, templates)


def encode_test(backbone: DrawsMasks, split: Split, canvas: tuple[int, int], target: Path) -> None:
    """Features of all pictures of a split, with their objects."""
    encode_objects(backbone, split, list(range(len(split.records))), 1, canvas, target)
