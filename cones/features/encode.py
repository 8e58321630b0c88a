"""Encoding a concept: its pictures through the image encoder and its names through the text encoder, once."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cones.backbones import open_backbone
from cones.backbones.hub import base_hash, locate
from cones.backbones.settings import BackboneConfig
from cones.common.errors import BackboneError
from cones.common.files import content_hash, fresh_folder, write_json
from cones.common.intact import hash_parts
from cones.features.draw import AnyConcept, Drawn
from cones.features.encoded import Encoded
from cones.interfaces.base import BaseModelCard
from cones.tasks.classification.encode import encode_classes
from cones.tasks.detection.encode import encode_concept_objects
from cones.tasks.detection.settings import DetectionConcept
from cones.tasks.generation.encode import encode_subject
from cones.tasks.generation.settings import GenerationConcept


def encode_concept(
    name: str,
    concept: AnyConcept,
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

    folder = locate(backbone_config.source, backbone_config.revision)
    backbone = open_backbone(backbone_config.kind, folder, device)
    if concept.task == "segmentation" and not backbone.has_masks:
        raise BackboneError(
            f"`{concept.backbone}` has no mask head, and the concept `{name}` asks for masks; set its task to "
            "detection and add a row `kind: mask_head` to `finetunes`, which trains one and predicts masks"
        )

    began = time.perf_counter()
    with fresh_folder(target) as out:
        if isinstance(concept, GenerationConcept):
            assert backbone_config.clip is not None, "a Stable Diffusion has its CLIP beside it"
            told = encode_subject(concept, backbone, drawn, out, on_batch, backbone_config.clip, device)
        elif isinstance(concept, DetectionConcept):
            told = encode_concept_objects(concept, backbone, drawn, out, on_batch)
        else:
            told = encode_classes(concept, backbone, drawn, out, on_batch)
        special, templates, tensors = told
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
            "shots": len(drawn.shown) if isinstance(concept, GenerationConcept) else concept.shots,
            "seed": concept.seed,
            "split_hash": content_hash(drawn.hashes),
            "val_hash": drawn.hashes["val"],
            "hashes": hash_parts(out, ("train", "val", "text.safetensors")),
        }
        write_json(out / "about.json", about)
        write_json(out / "cost.json", {"feature_seconds": round(seconds, 3)})
    return Encoded.open(target)
