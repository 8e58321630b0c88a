"""Encoding a concept: its pictures through the image encoder and its names through the text encoder, once."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cones.backbones import base_hash, locate, open_backbone
from cones.card import BaseModelCard
from cones.config import BackboneConfig, ClassificationConcept, DetectionConcept
from cones.data import Record, Split, draw_pictures, draw_shots, random_view, records_hash
from cones.encoded import Encoded
from cones.errors import BackboneError, DataError
from cones.features import FeatureStore, write_features
from cones.files import content_hash, fresh_folder, path_hash, write_json
from cones.messages import nearest
from cones.targets import Picture, refuse_maskless, write_targets
from cones.types import Geometry

AnyConcept = ClassificationConcept | DetectionConcept
DEFAULT_TEMPLATES = {"classification": ("a photo of a {}.",), "detection": ("{}",), "segmentation": ("{}",)}
DETECTION_BATCH = 16


def class_names(concept: AnyConcept, classes: tuple[str, ...]) -> list[str]:
    """What each class is called in a sentence: its own name with spaces for underscores, or what `names` says."""
    for given in concept.names:
        if given not in classes:
            raise DataError(
                f"`names` speaks of the class `{given}`, which the data does not have{nearest(given, classes)}"
            )
    return [concept.names.get(c, c.replace("_", " ")) for c in classes]


@dataclass(frozen=True)
class Drawn:
    """The pictures a concept is searched and validated on, as indices into their splits, and its class names."""

    train: Split
    shown: list[int]
    val: Split
    held: list[int]
    names: list[str]
    views: int

    @property
    def picture_views(self) -> int:
        """How many views of pictures there are to encode."""
        return len(self.shown) * self.views + len(self.held)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each picture that has objects."""
        chosen = ((self.train, self.shown), (self.val, self.held))
        return [size for split, rows in chosen for i in rows if (size := split.records[i].size)]

    @property
    def hashes(self) -> dict[str, str]:
        """What was drawn, by the content of the pictures."""
        chosen = {"train": (self.train, self.shown), "val": (self.val, self.held)}
        return {name: records_hash([split.records[i] for i in rows]) for name, (split, rows) in chosen.items()}


def draw(concept: AnyConcept, data: Path) -> Drawn:
    """Draw a concept's pictures from prepared data; `DataError` if a class has fewer than `shots`."""
    train, val = Split.open(data / "train"), Split.open(data / "val")
    shots, val_shots, at_most = concept.shots, concept.val_shots or concept.shots, concept.val_shots is None
    if isinstance(concept, DetectionConcept):
        for split in (train, val):
            _refuse_other_task(concept, split)
        shown = draw_pictures(train, shots, concept.seed)
        held = draw_pictures(val, val_shots, concept.seed, at_most)
    else:
        _refuse_other_task(concept, train)
        shown = draw_shots(train, concept.shots, concept.seed)
        held = draw_shots(val, val_shots or concept.shots, concept.seed, at_most)
    return Drawn(train, shown, val, held, class_names(concept, train.classes), concept.views)


def _refuse_other_task(concept: AnyConcept, split: Split) -> None:
    """`DataError` for boxes where classes are wanted, or the other way round, and for missing masks."""
    has_objects = bool(split.records) and split.records[0].objects is not None
    if has_objects != isinstance(concept, DetectionConcept):
        holds, task = ("boxes", "detection or segmentation") if has_objects else ("a class a picture", "classification")
        raise DataError(f"the data `{concept.data}` has {holds}, for {task}; the concept's task is {concept.task}")
    if concept.task == "segmentation":
        refuse_maskless([_picture_of(r, None) for r in split.records], [r.id for r in split.records])


def encode_concept(
    name: str,
    concept: AnyConcept,
    backbone_config: BackboneConfig,
    drawn: Drawn,
    target: Path,
    device: Any = "cpu",
    on_batch: Callable[[int], None] = lambda done: None,
) -> Encoded:
    """Run the image encoder over the drawn pictures' views and the text encoder over the names, once."""
    from safetensors.torch import save_file

    folder = locate(backbone_config.source, backbone_config.revision)
    backbone = open_backbone(backbone_config.kind, folder, device)
    if concept.task == "segmentation" and not backbone.has_masks:
        raise BackboneError(
            f"`{concept.backbone}` has no mask head, and the concept `{name}` asks for masks; set its task to "
            "detection and add a row `kind: mask_head` to `finetunes`, which trains one and predicts masks"
        )

    began = time.perf_counter()
    with fresh_folder(target) as out:
        if isinstance(concept, DetectionConcept):
            canvas = backbone.canvas(drawn.sizes)
            encode_objects(backbone, drawn.train, drawn.shown, concept.views, canvas, out / "train", on_batch)
            encode_objects(backbone, drawn.val, drawn.held, 1, canvas, out / "val", on_batch)
            special = {"score_threshold": concept.score_threshold, "canvas": canvas}
            given = None
        else:
            crops = (concept.views, concept.min_crop, concept.seed)
            encode_split(backbone, drawn.train, drawn.shown, *crops, out / "train", on_batch)
            encode_split(backbone, drawn.val, drawn.held, 1, 1.0, concept.seed, out / "val", on_batch)
            special = {"logit_scale": backbone.logit_scale}
            given = concept.templates
        templates = list(given or drawn.train.templates or DEFAULT_TEMPLATES[concept.task])
        text = backbone.embed_text(drawn.names, templates=templates)
        seconds = time.perf_counter() - began
        tensors = {"text": text.embeds[0].cpu().contiguous(), "owner": text.owner.cpu()}
        save_file(tensors, out / "text.safetensors")
        about = {
            "concept": name,
            "task": concept.task,
            "classes": list(drawn.train.classes),
            "names": drawn.names,
            "templates": templates,
            "base": BaseModelCard(
                name=concept.backbone,
                kind=backbone_config.kind,
                source=backbone_config.source,
                revision=backbone_config.revision,
                sha256=base_hash(folder),
            ).model_dump(),
            "preprocessing": backbone.preprocessing,
            **special,
            "shots": concept.shots,
            "seed": concept.seed,
            "split_hash": content_hash(drawn.hashes),
            "val_hash": drawn.hashes["val"],
            "hashes": {p: path_hash(out / p) for p in ("train", "val", "text.safetensors")},
        }
        write_json(out / "about.json", about)
        write_json(out / "cost.json", {"feature_seconds": round(seconds, 3)})
    return Encoded.open(target)


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
) -> FeatureStore:
    """Features of some pictures of a split: view 0 plain, the others random crops and flips."""

    def encode(chosen: Sequence[int], view: int) -> dict[str, Tensor]:
        pictures = [split.picture(rows[i]) for i in chosen]
        if view:
            streams = (np.random.default_rng([seed, view, rows[i]]) for i in chosen)
            pictures = [random_view(p, min_crop, rng) for p, rng in zip(pictures, streams)]
        return dict(backbone.encode(backbone.pixels(pictures)))

    records = [split.records[i] for i in rows]
    ids, labels = [r.id for r in records], [r.label for r in records]
    return write_features(target, ids, labels, views, encode, on_batch=on_batch)


def _picture_of(record: Record, geometry: Geometry | None) -> Picture:
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
    pictures: dict[int, Picture] = {}

    def encode(chosen: Sequence[int], view: int) -> dict[str, Tensor]:
        pixels, geometry = backbone.view([split.picture(rows[i]) for i in chosen], canvas, flipped=bool(view))
        pictures.update({i: _picture_of(records[i], g) for i, g in zip(chosen, geometry) if not view})
        return dict(backbone.encode(pixels))

    def write_more(folder: Path) -> None:
        ordered = [pictures[i] for i in range(len(rows))]
        crops = None
        if all(p.has_masks for p in ordered):
            crops = torch.cat([backbone.crop_masks(p.bitmaps()[k], p.truth().boxes[k]) for p, k in _counted(ordered)])
        write_targets(folder, ordered, crops)

    ids = [r.id for r in records]
    return write_features(target, ids, [-1] * len(ids), views, encode, DETECTION_BATCH, on_batch, write_more)
