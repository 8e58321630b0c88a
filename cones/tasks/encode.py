"""Encoding a concept: its pictures through the image encoder and its names through the text encoder, once."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cones.backbones import open_backbone
from cones.backbones.hub import base_hash, locate
from cones.backbones.settings import BackboneConfig
from cones.common.files import content_hash, fresh_folder, write_json
from cones.common.intact import hash_parts
from cones.data.groups import EDITED, refuse_shared_groups
from cones.data.prepared import Split
from cones.features.draw import Drawn, class_names
from cones.features.encoded import Encoded
from cones.interfaces.base import BaseModelCard
from cones.tasks.parts import part_of
from cones.tasks.settings import ConceptSettings


def draw(concept: ConceptSettings, data: Path) -> Drawn:
    """Draw a concept's pictures from prepared data; `DataError` if a class has fewer than `shots`, and for a group that
    is in both splits."""
    train, val = open_searched(data)
    shown, held = part_of(concept.task, "encode").draw(concept, train, val)
    return Drawn(train, shown, val, held, class_names(concept, train.classes), concept.views)


def open_searched(data: Path) -> tuple[Split, Split]:
    """The splits that a search may see, of prepared data; `DataError` for a group that is in both."""
    train, val = Split.open(data / "train"), Split.open(data / "val")
    refuse_shared_groups({"train": train.records, "val": val.records}, EDITED)
    return train, val


def encode_concept(
    name: str,
    concept: ConceptSettings,
    backbone_config: BackboneConfig,
    drawn: Drawn,
    target: Path,
    device: Any = "cpu",
    on_batch: Callable[[int], None] = lambda done: None,
) -> Encoded:
    """Run the image encoder over the drawn pictures' views and the text encoder over the names, once.

    In generation the mean feature of the training pictures to the base model's CLIP is kept as well.
    """
    from safetensors.torch import save

    parts = part_of(concept.task, "encode")
    folder = locate(backbone_config.source, backbone_config.revision)
    backbone = open_backbone(backbone_config.kind, folder, device)
    parts.refuse_unable(name, concept, backbone)
    began = time.perf_counter()
    with fresh_folder(target) as out:
        special, templates, tensors = parts.encode(concept, backbone, backbone_config, drawn, out, on_batch)
        seconds = time.perf_counter() - began
        # As bytes, so that a full disk is Python's own error.
        (out / "text.safetensors").write_bytes(save({name: t.cpu().contiguous() for name, t in tensors.items()}))
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
            **({} if drawn.train.reading is None else {"reading": drawn.train.reading}),
            "seed": concept.seed,
            "split_hash": content_hash(drawn.hashes),
            "val_hash": drawn.hashes["val"],
            "hashes": hash_parts(out, ("train", "val", "text.safetensors")),
        }
        write_json(out / "about.json", about)
        write_json(out / "cost.json", {"feature_seconds": round(seconds, 3)})
    return Encoded.open(target)
