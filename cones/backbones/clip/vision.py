"""CLIP's image encoder with prompts among its tokens: the forward that transformers' vision model does not offer, and
what its last layer attends to."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cones.common.errors import BackboneError
from cones.interfaces.protocols import Site


def encode_prompted(
    model: Any, pixels: Float[Tensor, "b 3 h w"], prompts: Float[Tensor, "l m d"], site: Site
) -> Float[Tensor, "b joint"]:
    """Pictures in the joint space, not of unit length, with m prompts among the tokens after the norm before the first
    layer; see `through_layers`."""
    vision = model.vision_model
    hidden = vision.pre_layrnorm(vision.embeddings(pixels))
    hidden = through_layers(hidden, vision.encoder.layers, prompts, site)
    return model.visual_projection(vision.post_layernorm(hidden[:, 0]))


def attention(
    model: Any, pixels: Float[Tensor, "b 3 h w"], prompts: Float[Tensor, "l m d"], site: Site
) -> Float[Tensor, "b q rows columns"]:
    """How much CLS and, after it, each of the m prompts attend to each patch in the last layer: the mean over its
    heads. What is left to 1 goes to CLS and the prompts themselves. Raises as `through_layers`."""
    vision = model.vision_model
    *before, last = vision.encoder.layers
    entered = [*before, lambda hidden, mask: hidden]  # the prompts enter the last layer, which is not run
    hidden = through_layers(vision.pre_layrnorm(vision.embeddings(pixels)), entered, prompts, site)
    hidden, heads = last.layer_norm1(hidden), last.self_attn.num_heads
    queries, keys = (
        project(hidden).unflatten(-1, (heads, -1)).transpose(1, 2)
        for project in (last.self_attn.q_proj, last.self_attn.k_proj)
    )
    shares = (queries @ keys.transpose(-1, -2) * last.self_attn.scale).softmax(-1).mean(1)
    front = 1 + prompts.shape[1]
    return shares[:, :front, front:].unflatten(-1, (pixels.shape[-2] // (site.patch_size or 1), -1))


def through_layers(
    hidden: Float[Tensor, "b t d"], layers: Iterable[Callable[..., Tensor]], prompts: Float[Tensor, "l m v"], site: Site
) -> Float[Tensor, "b s d"]:
    """Tokens through all layers of a ViT with m prompts between CLS and the patches (VPT, Jia et al. 2022).

    They enter before the first layer; at each of the layers after it, up to the l-th, what became of them gives way to
    the next ones. Raises `BackboneError` for prompts that do not fit the `site`.
    """
    depth, count, width = prompts.shape
    if width != site.width or not 1 <= depth <= site.depth:
        raise BackboneError(
            f"these visual tokens are {width} wide, for {depth} layers; this image encoder takes them {site.width} "
            f"wide, for 1 to {site.depth}"
        )
    for i, layer in enumerate(layers):
        if i < depth:
            patches = hidden[:, 1 + (count if i else 0) :]
            hidden = torch.cat([hidden[:, :1], prompts[i].expand(len(hidden), -1, -1), patches], 1)
        hidden = layer(hidden, None)
    return hidden
