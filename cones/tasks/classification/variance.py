"""How far the pictures of a class lie apart under a base model, and how far its class names do.

UPT's analysis (Zang et al. 2022, arXiv 2210.07225, section 3) relates both to what prompts gain: of a text where
classes vary much in their pictures, and of a picture where class names lie close in their texts.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from cones.common.errors import DataError


def visual_variance(features: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> float:
    """Within-class visual variance: the mean over classes c of the mean over a class's pictures i of ||v_i - m_c||^2.

    The v_i are `features` scaled to unit length and m_c is their mean in class c, which is not; so it lies in [0, 1].
    A class counts as much as any other, however many pictures it has, and one of a single picture has no variance.
    """
    if not len(features):
        raise DataError("there are no pictures to take a variance of")
    unit = F.normalize(features.double(), dim=-1)
    return torch.stack([_spread(unit[labels == label]) for label in labels.unique()]).mean().item()


def text_variance(text: Float[Tensor, "c d"]) -> float:
    """Between-class text variance: the mean over classes of ||w_c - m||^2, in [0, 1].

    The w_c are the classes' text features scaled to unit length, said as the data set says them (the mean over its
    templates), and m is their mean.
    """
    return _spread(F.normalize(text.double(), dim=-1)).item()


def _spread(vectors: Tensor) -> Tensor:
    """The mean squared distance of vectors (n, d) to their mean."""
    return (vectors - vectors.mean(0)).square().sum(1).mean()
