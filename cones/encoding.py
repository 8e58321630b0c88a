"""Encoding a concept: its pictures through the image encoder and its names through the text encoder, once."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cones.backbones import base_hash, locate, open_backbone
from cones.card import BaseModelCard
from cones.config import BackboneConfig, ConceptConfig
from cones.data import Split, draw_shots, random_view, records_hash
from cones.encoded import Encoded
from cones.errors import DataError
from cones.features import FeatureStore, write_features
from cones.files import content_hash, fresh_folder, path_hash, write_json
from cones.messages import nearest

DEFAULT_TEMPLATES = ("a photo of a {}.",)


def class_names(concept: ConceptConfig, classes: tuple[str, ...]) -> list[str]:
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
    def hashes(self) -> dict[str, str]:
        """What was drawn, by the content of the pictures."""
        chosen = {"train": (self.train, self.shown), "val": (self.val, self.held)}
        return {name: records_hash([split.records[i] for i in rows]) for name, (split, rows) in chosen.items()}


def draw(concept: ConceptConfig, data: Path) -> Drawn:
    """Draw a concept's pictures from prepared data; `DataError` if a class has fewer than `shots`."""
    train, val = Split.open(data / "train"), Split.open(data / "val")
    shown = draw_shots(train, concept.shots, concept.seed)
    held = draw_shots(val, concept.val_shots or concept.shots, concept.seed, at_most=concept.val_shots is None)
    return Drawn(train, shown, val, held, class_names(concept, train.classes), concept.views)


def encode_concept(
    name: str,
    concept: ConceptConfig,
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

    began = time.perf_counter()
    with fresh_folder(target) as out:
        crops = (concept.views, concept.min_crop, concept.seed)
        encode_split(backbone, drawn.train, drawn.shown, *crops, out / "train", on_batch)
        encode_split(backbone, drawn.val, drawn.held, 1, 1.0, concept.seed, out / "val", on_batch)
        templates = list(concept.templates or drawn.train.templates or DEFAULT_TEMPLATES)
        text = backbone.embed_text(drawn.names, templates=templates).embeds[0]
        seconds = time.perf_counter() - began
        save_file({"text": text.cpu().contiguous()}, out / "text.safetensors")
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
            "logit_scale": backbone.logit_scale,
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
