"""Toy base models: the real classes at toy width with random weights, in their own layouts."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

WIDTH = 32
"""Channels of the pyramid: 16 groups of one channel would leave GroupNorm nothing to normalise on a 1 x 1 level."""


def toy_glip_config(**changes: dict[str, Any]) -> dict[str, Any]:
    """The configuration of `glip-tiny` for 64-pixel pictures, `WIDTH` channels wide; `changes` go into its parts."""
    from cones.pretrain import glip_model as glip_tiny

    config = copy.deepcopy(glip_tiny.CONFIG)
    toy: dict[str, dict[str, Any]] = {
        "preprocessing": {"scale": [64, 64]},
        "backbone": {"depth": 18, "base_channels": 8},
        "neck": {"in_channels": [64], "out_channels": WIDTH},
        "bbox_head": {"in_channels": WIDTH, "feat_channels": WIDTH, "fusion_width": 32, "fusion_heads": 2},
        "mask_head": {"channels": WIDTH, "width": 8},
        "test_cfg": {"score_thr": 0.0, "max_per_img": 12},
    }
    for part, settings in [*toy.items(), *changes.items()]:
        config[part] |= settings
    return config


def write_toy_glip(folder: Path, config: dict[str, Any]) -> Path:
    """A GLIP with random weights, which sees objects everywhere; without `mask_head` in `config` it has no masks."""
    from cones.backbones.glip.parts import PARTS, build_part
    from cones.pretrain import glip_model as glip_tiny

    folder.mkdir(parents=True)
    glip_tiny.write_text_encoder(["red ring", "blue star"], folder / "text_encoder")
    torch.manual_seed(0)
    names = [name for name in PARTS if name in {*config, "language_model"}]
    glip_tiny.write_glip(nn.ModuleDict({n: build_part(n, config, folder) for n in names}), folder, config)
    return folder


def write_toy_sd(folder: Path, clip: Path, **unet: Any) -> Path:
    """A Stable Diffusion of 64-pixel pictures with random weights and the text encoder of a CLIP; `unet` are changes
    of its UNet's configuration."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    from cones.pretrain import sd_model as tiny

    text, tokenizer = tiny.text_parts(clip)
    narrow: dict[str, Any] = {"block_out_channels": [8, 16], "norm_num_groups": 4, "attention_head_dim": 2}
    torch.manual_seed(0)
    vae = AutoencoderKL(**tiny.VAE | {"block_out_channels": [8, 8, 8, 16], "norm_num_groups": 4})
    made = UNet2DConditionModel(**tiny.UNET | narrow | unet, cross_attention_dim=text.config.hidden_size)
    tiny.write_pipeline(folder, vae, made, text, tokenizer, DDIMScheduler(**tiny.SCHEDULE))
    return folder
