"""Encoding a concept of generation."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from cones.backbones import open_backbone
from cones.backbones.hub import base_hash, locate
from cones.backbones.sd.settings import DiffusionModel
from cones.data.prepared import Split
from cones.features.draw import Drawn, refuse_other_task
from cones.features.text import Told, pooled_tensors
from cones.features.views import encode_split
from cones.interfaces.protocols import DualEncoder, Paints
from cones.tasks.generation.sentences import SENTENCES
from cones.tasks.generation.settings import GenerationConcept


def draw(concept: GenerationConcept, train: Split, val: Split) -> tuple[list[int], list[int]]:
    """All training and validation pictures, as indices."""
    refuse_other_task(concept, train)
    return list(range(len(train.records))), list(range(len(val.records)))


def refuse_unable(name: str, concept: GenerationConcept, backbone: Paints) -> None:
    """`BackboneError` for a base model that cannot do what the concept asks for."""


def encode(
    concept: GenerationConcept,
    backbone: Paints,
    config: DiffusionModel,
    drawn: Drawn,
    out: Path,
    on_batch: Callable[[int], None],
) -> Told:
    """Latents of views and each template with the class word; also the mean feature of the training pictures to the
    base model's CLIP."""
    assert config.clip is not None, "a Stable Diffusion has its CLIP beside it"
    folder = locate(config.clip.source, config.clip.revision)
    clip = cast(DualEncoder, open_backbone("clip", folder, backbone.device))
    images: list[Tensor] = []

    def look(pictures: list[Image.Image]) -> None:
        images.append(clip.encode(clip.pixels(pictures))["image"].float())

    crops = (concept.views, concept.min_crop, concept.seed)
    encode_split(backbone, drawn.train, drawn.shown, *crops, out / "train", on_batch, concept.flip, look)
    encode_split(backbone, drawn.val, drawn.held, 1, 1.0, concept.seed, out / "val", on_batch)
    templates = list(concept.templates or SENTENCES[concept.learns])
    text = backbone.embed_text(drawn.names, templates=templates)
    seen = torch.cat(images).mean(0)
    special = {
        "guidance": concept.guidance,
        "sampling_steps": concept.sampling_steps,
        "clip": {**config.clip.model_dump(), "sha256": base_hash(folder)},
        "shots": len(drawn.shown),
    }
    none = backbone.embed_text([""], templates=[""]).embeds
    return special, templates, {
        "text": text.embeds, "owner": text.owner, "unconditional": none, "seen": seen, **pooled_tensors(text)
    }  # fmt: skip


def encode_test(backbone: Paints, split: Split, canvas: None, target: Path) -> None:
    """Latents of all pictures of a split, as they are."""
    encode_split(backbone, split, list(range(len(split.records))), 1, 1.0, 0, target)
