"""Encoding a concept of generation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cones.backbones import open_backbone
from cones.backbones.hub import base_hash, locate
from cones.backbones.settings import ModelSource
from cones.features.draw import Drawn
from cones.features.text import Told, pooled_tensors
from cones.features.views import encode_split
from cones.tasks.generation.sentences import SENTENCES
from cones.tasks.generation.settings import GenerationConcept


def encode_subject(
    concept: GenerationConcept,
    backbone: Any,
    drawn: Drawn,
    out: Path,
    on_batch: Callable[[int], None],
    config: ModelSource,
    device: Any,
) -> Told:
    folder = locate(config.source, config.revision)
    clip = open_backbone("clip", folder, device)
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
        "clip": {**config.model_dump(), "sha256": base_hash(folder)},
    }
    none = backbone.embed_text([""], templates=[""]).embeds
    return special, templates, {
        "text": text.embeds, "owner": text.owner, "unconditional": none, "seen": seen, **pooled_tensors(text)
    }  # fmt: skip
