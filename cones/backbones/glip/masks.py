"""Instance masks for GLIP, which has none of its own: mmdet's mask head on the pyramid after text was fused into it.

On the FPN alone the text would reach masks only through the boxes; on the fused pyramid their loss moves prompts too.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from mmcv.ops import roi_align
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.registry import MODELS
from mmdet.utils import reduce_mean
from mmengine.config import ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from cones.interfaces.pictures import Instances

THRESHOLD = 0.5
ROI, SIZE = 14, 28
"""Sides of a region's features and of its mask (He et al. 2017, figure 4)."""


@MODELS.register_module()
class MaskHead(nn.Module):
    """A class-agnostic `FCNMaskHead` over RoIs (He et al. 2017, Mask R-CNN): masks of `SIZE` a side."""

    def __init__(self, channels: int, width: int, convs: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.levels = len(strides)
        layer = {"type": "RoIAlign", "output_size": ROI, "sampling_ratio": 2}
        self.extract = SingleRoIExtractor(layer, out_channels=channels, featmap_strides=list(strides))
        self.head = FCNMaskHead(
            num_convs=convs, roi_feat_size=ROI, in_channels=channels, conv_out_channels=width, num_classes=1,
            class_agnostic=True,
        )  # fmt: skip
        if not self.head.conv_logits.weight.is_meta:  # mmengine reads the weights that it sets
            self.head.init_weights()

    def forward(self, pyramid: Sequence[Tensor], boxes: Sequence[Float[Tensor, "_ 4"]]) -> Float[Tensor, "n s s"]:
        """Logits of the masks in some boxes of each image, one image after the other."""
        rois = torch.cat([F.pad(b, (1, 0), value=i) for i, b in enumerate(boxes)])
        if not len(rois):
            return rois.new_zeros(0, SIZE, SIZE)
        return self.head(self.extract(tuple(pyramid[: self.levels]), rois))[:, 0]

    def loss(self, pyramid: Sequence[Tensor], instances: Sequence[Instances]) -> Float[Tensor, ""]:
        """Binary cross entropy in the true boxes, which count alike in whichever of a row's processes they are."""
        logits = self(pyramid, [i.boxes for i in instances])
        targets = torch.cat([i.crops for i in instances if i.crops is not None]).to(logits)
        mean = reduce_mean(torch.tensor(float(len(logits)), device=logits.device)).item()
        if not len(logits):
            return pyramid[0].sum() * 0
        return F.binary_cross_entropy_with_logits(logits, targets) * (len(logits) / mean)

    def predict(self, pyramid: Sequence[Tensor], boxes: Sequence[Float[Tensor, "_ 4"]]) -> tuple[Tensor, ...]:
        """Logits (n, s, s) of the masks in each image's boxes."""
        return self(pyramid, boxes).split([len(b) for b in boxes])

    def paste(
        self, logits: Float[Tensor, "n s s"], boxes: Float[Tensor, "n 4"], size: tuple[int, int]
    ) -> Bool[Tensor, "n h w"]:
        """Masks put back into a picture of `size` (height, width) at their boxes."""
        if not len(logits):
            return torch.zeros(0, *size, dtype=torch.bool, device=logits.device)
        meta: dict[str, Any] = {"scale_factor": (1.0, 1.0), "ori_shape": size}
        config = ConfigDict(mask_thr_binary=THRESHOLD)
        return self.head._predict_by_feat_single(logits[:, None], boxes.clone(), boxes[:, 0], meta, config)


def crop_masks(masks: Bool[Tensor, "n h w"], boxes: Float[Tensor, "n 4"], size: int) -> Float[Tensor, "n s s"]:
    """Each mask cut to its box and resized, as a mask head is to draw it."""
    rois = torch.cat([torch.arange(len(boxes), dtype=boxes.dtype, device=boxes.device)[:, None], boxes], 1)
    if not len(boxes):
        return boxes.new_zeros(0, size, size)
    return (roi_align(masks[:, None].to(boxes), rois, size, 1.0, 0, "avg", True)[:, 0] >= THRESHOLD).to(boxes)
