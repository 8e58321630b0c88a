"""Toy GLIPs as the tests of the GLIP backbone take them, pictures for them, and the names of a BERT layer."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import nn

from cones.backbones.glip.glip import Glip
from cones.backbones.glip.parts import PARTS, build_part
from cones.common.files import write_json
from cones.interfaces.pictures import Features, Geometry, Instances
from cones.pretrain import glip_model as glip_tiny

NAMES = ["red circle", "ring", "tiny grainy star"]
TEXT_LAYER = {
    "attention.self.query": (768, 768),
    "attention.self.key": (768, 768),
    "attention.self.value": (768, 768),
    "attention.output.dense": (768, 768),
    "attention.output.LayerNorm": (768,),
    "intermediate.dense": (3072, 768),
    "output.dense": (768, 3072),
    "output.LayerNorm": (768,),
}
"""The layers with weight and bias of mmdet's `BertEncoderLayer` at BERT-base's widths, from its source."""


def toy_config(early_fuse: bool) -> dict[str, Any]:
    """A GLIP of 32 channels for 64-pixel pictures, which says nothing for sure."""
    config = copy.deepcopy(glip_tiny.CONFIG)
    config["preprocessing"] |= {"scale": [64, 96], "channels": "bgr"}
    config["backbone"] |= {"depth": 18, "base_channels": 8}
    config["neck"] |= {"in_channels": [64], "out_channels": 32}
    config["bbox_head"] |= {"in_channels": 32, "feat_channels": 32, "early_fuse": early_fuse}
    config["bbox_head"] |= {"num_dyhead_blocks": 2, "fusion_width": 32, "fusion_heads": 2}
    config["mask_head"] |= {"channels": 32, "width": 8}
    config["test_cfg"] |= {"score_thr": 0.0, "max_per_img": 20}
    return config


def write_bert(folder: Path) -> None:
    """A small BERT's configuration, and a vocabulary of some words and of all letters, for other words' pieces."""
    from transformers import BertConfig

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = [*letters, *(f"##{letter}" for letter in letters), *".-", "red", "circle", "ring", "star", "##ny", "ti"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces]
    BertConfig(**glip_tiny.BERT, vocab_size=len(vocabulary)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary))


def write_toy(folder: Path, early_fuse: bool, masks: bool = True) -> Path:
    """Its folder, with weights far enough from those it starts with for every layer to count."""
    config = toy_config(early_fuse)
    if not masks:
        del config["mask_head"]
    write_bert(folder / "text_encoder")
    write_json(folder / "config.json", config)
    torch.manual_seed(0)
    parts = nn.ModuleDict(
        {name: build_part(name, config, folder) for name in PARTS if name in (*config, "language_model")}
    )
    with torch.no_grad():
        for parameter in parts.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    save_file({k: v.contiguous() for k, v in parts.state_dict().items()}, folder / "model.safetensors")
    return folder


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture of things, none like another and none symmetric."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 90, (height, width, 3), dtype=np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse((5, 8, 30, 28), (220, 30, 40))
    draw.rectangle((width - 30, height - 25, width - 8, height - 4), (20, 200, 90))
    return image


PICTURES = [picture(70, 50), picture(44, 61, seed=1)]
OBJECTS = [
    Instances(torch.tensor([[5.0, 8.0, 31.0, 29.0], [40.0, 25.0, 63.0, 47.0]]), torch.tensor([0, 2])),
    Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)),
]


def features_of(glip: Glip, pictures: list[Image.Image], objects: list[Instances], flipped: bool = False) -> Features:
    """Pictures encoded, with their objects brought from the pictures' pixels to those of their views."""
    canvas = glip.canvas([(p.height, p.width) for p in pictures])
    pixels, geometry = glip.view(pictures, canvas, flipped)
    instances = tuple(in_view(o, g) for o, g in zip(objects, geometry))
    views = torch.full((len(pictures),), int(flipped))
    return Features(dict(glip.encode(pixels)), views, instances=instances, geometry=geometry)


def in_view(objects: Instances, geometry: Geometry) -> Instances:
    (height, width), (h, w) = geometry.original, geometry.content
    boxes = objects.boxes * torch.tensor([w / width, h / height]).repeat(2)
    if geometry.flipped:
        boxes = torch.stack([w - boxes[:, 2], boxes[:, 1], w - boxes[:, 0], boxes[:, 3]], 1)
    return Instances(boxes, objects.labels)


def names_of(layers: dict[str, Any], prefix: str = "") -> set[str]:
    return {f"{prefix}{name}.{kind}" for name in layers for kind in ("weight", "bias")}


def full_size(layers: dict[str, tuple[int, ...]], prefix: str) -> dict[str, tuple[int, ...]]:
    """Weights and biases of layers: a bias is as long as a weight is high."""
    shapes = {f"{prefix}{name}.weight": shape for name, shape in layers.items()}
    return shapes | {f"{prefix}{name}.bias": shape[:1] for name, shape in layers.items()}


def shapes_of(module: nn.Module, prefix: str) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}{k}": tuple(v.shape) for k, v in module.state_dict().items()}
