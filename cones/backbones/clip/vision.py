"""CLIP's image encoder with prompts among its tokens: the forward that transformers' vision model does not offer."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cones.common.errors import BackboneError
from cones.interfaces.protocols import Site


def encode_prompted(
    model: Any, pixels: Float[Tensor, "b 3 h w"], prompts: Float[Tensor, "l m d"], site: Site
) -> Float[Tensor, "b joint"]:
    """Pictures in the joint space, not of unit length, with m prompts between CLS and the patches.

    They enter after the norm before the first layer (VPT, Jia et al. 2022); at each of the layers after it, up to the
    l-th, what became of them gives way to the next ones. Raises `BackboneError` for prompts that do not fit the `site`.
    """
    depth, count, width = prompts.shape
    if width != site.width or not 1 <= depth <= site.depth:
        raise BackboneError(
            f"these visual tokens are {width} wide, for {depth} layers; this image encoder takes them {site.width} "
            f"wide, for 1 to {site.depth}"
        )
    vision = model.vision_model
    hidden = vision.pre_layrnorm(vision.embeddings(pixels))
    for i, layer in enumerate(vision.encoder.layers):
        if i < depth:
            patches = hidden[:, 1 + (count if i else 0) :]
            hidden = torch.cat([hidden[:, :1], prompts[i].expand(len(hidden), -1, -1), patches], 1)
        hidden = layer(hidden, None)
    return model.visual_projection(vision.post_layernorm(hidden[:, 0]))
