"""The parts of mmdet's GLIP that its own code no longer builds on today's transformers, under the same names.

mmdet's fusion layers subclass transformers internals of 2023 and have the widths of GLIP-T as defaults. These have the
parameter names of the originals, so official checkpoints load strictly, and take their widths from the model.
"""

import math
from collections import OrderedDict
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float, Int
from mmdet.models.dense_heads.atss_vlfusion_head import ATSSVLFusionHead, VLFusionModule
from mmdet.models.utils.vlfuse_helper import MAX_CLAMP_VALUE, VLFuse
from mmdet.registry import MODELS
from torch import Tensor, nn
from transformers.activations import ACT2FN

MATCHES_ROOM = 256 * 2**20
"""Bytes for the matched anchors of pictures that come again: 20 kB each at 128 pixels, 1.3 MB at 800 x 1333."""


def _clamped(x: Tensor) -> Tensor:
    return x.clamp(-MAX_CLAMP_VALUE, MAX_CLAMP_VALUE)


class _SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Float[Tensor, "b t d"], mask: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        query, key, value = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        scores = _clamped(query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]))
        scores = scores.masked_fill(mask[:, None, None] == 0, torch.finfo(scores.dtype).min)
        return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


class _Residual(nn.Module):
    """A linear layer, added to its input and normalised."""

    def __init__(self, inner: int, width: int, eps: float) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(inner, width), nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + before)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.self, self.output = _SelfAttention(width, heads), _Residual(width, width, eps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.output(self.self(x, mask), x)


class _Intermediate(nn.Module):
    def __init__(self, width: int, inner: int, activation: str) -> None:
        super().__init__()
        self.dense, self.activation = nn.Linear(width, inner), ACT2FN[activation]

    def forward(self, x: Tensor) -> Tensor:
        return _clamped(self.activation(_clamped(self.dense(x))))


class _Output(_Residual):
    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        return _clamped(self.LayerNorm(_clamped(self.dense(x)) + before))


class FusedTextLayer(nn.Module):
    """One BERT layer over the text after it was fused with the picture (Li et al. 2022, GLIP, section 3.2).

    Activations are clamped to +-50000 as there. It has no dropout: the head is frozen, or fine-tuned on few pictures.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.attention = _Attention(width, config.num_attention_heads, eps)
        self.intermediate = _Intermediate(width, config.intermediate_size, config.hidden_act)
        self.output = _Output(config.intermediate_size, width, eps)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        lang = inputs["lang"]
        attended = self.attention(lang["hidden"], lang["masks"])
        hidden = self.output(self.intermediate(attended), attended)
        return {"visual": inputs["visual"], "lang": {**lang, "hidden": hidden}}


class FusionTower(VLFusionModule):
    """mmdet's `VLFusionModule` with the fusion layers above; `fused` is the pyramid after the last of them."""

    early_fuse: bool
    dyhead_tower: nn.Sequential

    def __init__(self, fusion_width: int, fusion_heads: int, **kwargs: Any) -> None:
        self.fusion = (fusion_width, fusion_heads)
        super().__init__(**kwargs)

    def _init_layers(self) -> None:
        early, self.early_fuse = self.early_fuse, False
        super()._init_layers()
        self.early_fuse = early
        if early:
            width, heads = self.fusion
            layers = (
                (
                    VLFuse(self.in_channels if i == 0 else self.feat_channels, self.lang_dim, width, heads, dropout=0),
                    FusedTextLayer(self.lang_cfg),
                    block,
                )
                for i, block in enumerate(self.dyhead_tower)
            )
            self.dyhead_tower = nn.Sequential(*chain.from_iterable(layers))
        self.dyhead_tower.register_forward_hook(self._keep_fused)

    def _keep_fused(self, module: nn.Module, inputs: Any, output: dict[str, Any]) -> None:
        self.fused = tuple(output["visual"])


@MODELS.register_module()
class FusionHead(ATSSVLFusionHead):
    """mmdet's `ATSSVLFusionHead` with this tower, at any width. `fusion_width` and `fusion_heads` are of its VLFuse."""

    def __init__(
        self,
        *args: Any,
        early_fuse: bool = False,
        num_dyhead_blocks: int = 6,
        lang_model_name: str,
        fusion_width: int = 2048,
        fusion_heads: int = 8,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, early_fuse=False, num_dyhead_blocks=0, lang_model_name=lang_model_name, **kwargs)
        self.head = FusionTower(
            fusion_width,
            fusion_heads,
            in_channels=self.in_channels,
            feat_channels=self.feat_channels,
            num_base_priors=self.num_base_priors,
            early_fuse=early_fuse,
            num_dyhead_blocks=num_dyhead_blocks,
            lang_model_name=lang_model_name,
        )
        self._anchors: dict[Any, Any] = {}
        self._matched: OrderedDict[int, tuple[Tensor, Tensor, tuple]] = OrderedDict()

    def get_anchors(self, featmap_sizes: list[Any], batch_img_metas: list[dict], device: Any = "cuda") -> Any:
        """mmdet's anchors and their flags; those of the last kind of batch are kept, for all batches of one cache."""
        shapes = tuple(tuple(meta["pad_shape"]) for meta in batch_img_metas)
        key = (tuple(map(tuple, featmap_sizes)), shapes, torch.device(device))
        if key not in self._anchors:
            self._anchors = {key: super().get_anchors(featmap_sizes, batch_img_metas, device)}
        anchors, flags = self._anchors[key]
        return list(anchors), list(flags)  # mmdet puts its own things into the lists

    def _get_targets_single(
        self, flat_anchors: Tensor, valid_flags: Tensor, levels: list[int], gt: Any, *rest: Any, **more: Any
    ) -> tuple:
        """mmdet's targets of one picture. Which anchors match which box does not depend on the text, so on a CPU the
        match of a picture that comes again is not made again; only what its tokens are is filled in."""
        held = self._matched.get(id(gt.labels))
        if held is None or held[0] is not gt.labels or not torch.equal(held[1], gt.bboxes):
            found = super()._get_targets_single(flat_anchors, valid_flags, levels, gt, *rest, **more)
            if gt.labels.device.type == "cpu":  # on a GPU the labels of a batch are always new ones
                self._keep_match(gt, found)
            return found
        anchors, *others, positive, negative, sampled = held[2]
        labels = anchors.new_zeros(len(anchors), self.feat_channels)
        labels[positive] = gt.positive_maps[sampled.pos_assigned_gt_inds]
        return (anchors, labels, *others, positive, negative, sampled)

    def _keep_match(self, gt: Any, found: tuple) -> None:
        anchors, _, *rest, sampled = found
        sampled.neg_priors = sampled.neg_priors[:0]  # as large as all the rest, and not looked at
        self._matched[id(gt.labels)] = (gt.labels, gt.bboxes, (anchors, *rest, sampled))
        size = sum(t.numel() * t.element_size() for t in (anchors, *rest))
        while len(self._matched) * size > MATCHES_ROOM:
            self._matched.popitem(last=False)
