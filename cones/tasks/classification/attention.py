"""What a row's visual prompts look at in test pictures."""

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cones.data.prepared import Split
from cones.interfaces.protocols import Attends
from cones.visuals.sheets import picture_rows, shown_indices

SHOWN = 8
"""Test pictures that are shown, the same for every row."""
LEAST = 0.15
"""What is left of the light of a picture where nothing looks."""


def attention_sheet(backbone: Attends, split: Split, visual_tokens: Float[Tensor, "l m v"]) -> Image.Image:
    """Pictures as the image encoder is given them; under them the same, each as light as CLS looks at it in the last
    layer, and as the prompts do on average. The lightest place of each is what is looked at most."""
    pixels = backbone.pixels([split.picture(i) for i in shown_indices(split, SHOWN)])
    seen = backbone.attention(pixels, visual_tokens)
    how = backbone.preprocessing
    mean, std = (torch.tensor(how[name])[:, None, None] for name in ("mean", "std"))
    shown = (pixels * std + mean).clamp(0, 1)
    lines = [("the picture", shown)]
    for name, of in (("CLS looks at", seen[:, 0]), ("the prompts look at", seen[:, 1:].mean(1))):
        lines.append((name, shown * _light(of, pixels.shape[-2:])))
    return picture_rows([(name, [_picture(one) for one in of]) for name, of in lines])


def _light(attention: Float[Tensor, "b rows columns"], size: torch.Size) -> Float[Tensor, "b 1 h w"]:
    """Between `LEAST` and 1, the most attended patch of each picture."""
    share = attention / attention.amax((1, 2), keepdim=True)
    return LEAST + (1 - LEAST) * F.interpolate(share[:, None], tuple(size), mode="bilinear")


def _picture(pixels: Float[Tensor, "3 h w"]) -> Image.Image:
    return Image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).numpy())
