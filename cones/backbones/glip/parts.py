"""Building mmdet's GLIP part by part, filling it strictly, and talking to its head."""

# ruff: noqa: E402  (mmcv's operators are put in before anything of mmdet is imported, since mmdet imports them)

import logging
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cones.backbones.glip.mmcv_ops import install
from cones.backbones.hub import TEXT_ENCODER
from cones.backbones.weights import listed, misfits
from cones.common.errors import BackboneError
from cones.interfaces.pictures import Geometry, Instances

install()

from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.structures import InstanceData

PARTS = ("backbone", "neck", "language_model", "bbox_head", "mask_head")
TYPES = {
    "ResNet", "SwinTransformer", "FPN", "FPN_DropBlock", "BN", "SyncBN", "LN", "GN", "AnchorGenerator",
    "DeltaXYWHBBoxCoderForGLIP", "ATSSAssigner", "BboxOverlaps2D_GLIP", "nms",
}  # fmt: skip
"""What a configuration may name: mmengine builds whatever stands under `type`, any function of any module too."""
LOSS = {
    "loss_cls": {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0},
    "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
    "loss_centerness": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
}


def _ready() -> None:
    """mmdet's registry filled with its modules and ours, and quiet: it logs a block a parameter otherwise."""
    register_all_modules(init_default_scope=True)
    import cones.backbones.glip.fusion
    import cones.backbones.glip.masks
    import cones.backbones.glip.text  # noqa: F401

    MMLogger.get_current_instance().setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*upsample_bilinear.*")


def build_part(name: str, config: Mapping[str, Any], folder: Path) -> nn.Module:
    """One of `PARTS` from a GLIP's configuration, with random weights; `folder` holds its text encoder's files.

    Raises `BackboneError` where the configuration names a type that no GLIP is made of.
    """
    _ready()
    settings = dict(config.get(name) or {})
    if strange := _types({part: config.get(part) for part in (*PARTS, "train_cfg", "test_cfg")}) - TYPES:
        raise BackboneError(
            f"the configuration in {folder} asks for {', '.join(sorted(strange))}, of which no GLIP is made; take its "
            "config.json from where the model was published"
        )
    bert = str(folder / TEXT_ENCODER)
    match name:
        case "language_model":
            settings = {"type": "CaptionEncoder", "name": bert, "max_tokens": config["max_text_tokens"]}
        case "bbox_head":
            train, test = ConfigDict(config["train_cfg"]), ConfigDict(config["test_cfg"])
            settings |= {"type": "FusionHead", "lang_model_name": bert, "train_cfg": train, "test_cfg": test, **LOSS}
        case "mask_head":
            settings["type"] = "MaskHead"
    return MODELS.build(settings)


def _types(settings: Any) -> set[str]:
    """All that stands under `type` in nested settings."""
    if isinstance(settings, Mapping):
        own = {str(settings["type"])} if "type" in settings else set()
        return own.union(*(_types(value) for value in settings.values()))
    return set().union(*(_types(value) for value in settings)) if isinstance(settings, list | tuple) else set()


def empty_parts(names: Iterable[str], config: Mapping[str, Any], folder: Path) -> nn.ModuleDict:
    """Some of `PARTS` without weights, for `load_strictly`: random ones of GLIP-T take longer to draw than to read."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return nn.ModuleDict({name: build_part(name, config, folder) for name in names})


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], where: Path) -> None:
    """Fill a module; `BackboneError` with the names of what is missing, left over or of another shape."""
    if wrong := misfits(module.state_dict(), state):
        raise BackboneError(f"the weights in {where} do not fill the model: {listed(wrong)}")
    module.load_state_dict(state, strict=True, assign=True)


def sample_of(geometry: Geometry, owners: dict[int, list[int]], instances: Instances | None, tokens: int) -> Any:
    """mmdet's description of one picture; its objects, if given, with the tokens (n, T) that each of them matches.

    GLIP was trained on boxes that end on their last pixel, so one pixel of the original picture is taken off here
    (mmdet's `GTBoxSubOne_GLIP`); its head puts it back onto the boxes that it finds.
    """
    (height, width), (h, w) = geometry.original, geometry.content
    sample = DetDataSample(
        metainfo={
            "img_shape": geometry.content,
            "ori_shape": geometry.original,
            "pad_shape": geometry.padded,
            "batch_input_shape": geometry.padded,
            "scale_factor": (w / width, h / height),
        }
    )
    sample.token_positive_map = owners
    if instances is not None:
        of_class = torch.zeros(len(owners), tokens, device=instances.boxes.device)
        for label, places in owners.items():
            of_class[label - 1, places] = 1
        last_pixel = instances.boxes.new_tensor([0, 0, w / width, h / height])
        sample.gt_instances = InstanceData(
            bboxes=instances.boxes - last_pixel,
            labels=instances.labels,
            positive_maps=of_class[instances.labels],
        )
    return sample
