"""GLIP through mmdet: any folder made by `cones.backbones.glip.convert`, frozen.

Opening one reads its configuration only. Its parts (image encoder, text encoder, head) load when they are first used,
so that a search on cached pyramids never loads the encoders.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat
from torch import Tensor, nn

from cones.backbones.glip.settings import FAMILY
from cones.backbones.opening import opening, read_config
from cones.backbones.tuned import with_tuned
from cones.common.errors import BackboneError
from cones.common.tensors import read_safetensors
from cones.interfaces.pictures import Features, Geometry, Instances, Predictions
from cones.interfaces.protocols import Loss, Site, refuse_missing_sites
from cones.interfaces.texts import TextEmbeds, TextTokens

if TYPE_CHECKING:
    from cones.backbones.glip.masks import MaskHead
    from cones.backbones.glip.text import CaptionEncoder

MODEL_TYPE = "glip"
HELD_BY = {
    "backbone": "vision",
    "neck": "vision",
    "language_model": "language_model",
    "bbox_head": "head",
    "mask_head": "mask_head",
}
"""Which of a `Glip`'s modules holds a part, by the part's name in the state dict."""
Pixels = Annotated[int, Field(ge=1, le=4096)]
NEW_MASK_HEAD_CONVS, NEW_MASK_HEAD_LEVELS = 4, 4
"""Of a mask head that a model gets later: convolutions and pyramid levels, as in Mask R-CNN (He et al. 2017)."""


class Preprocessing(BaseModel):
    """What is done to a picture before it is encoded."""

    model_config = ConfigDict(allow_inf_nan=False)
    scale: tuple[Pixels, Pixels]
    divisor: Pixels
    channels: Literal["rgb", "bgr"]
    mean: tuple[float, float, float]
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]


class Settings(BaseModel):
    """What `config.json` has for this module; `cones.backbones.glip.parts` knows the rest."""

    max_text_tokens: Annotated[int, Field(ge=1, le=4096)]
    preprocessing: Preprocessing
    backbone: dict
    neck: dict
    bbox_head: dict
    mask_head: dict | None = None
    train_cfg: dict
    test_cfg: dict


class Glip:
    """A frozen GLIP. Features are the levels of its pyramid; text is the tokens of one caption.

    Without `draws_masks` it predicts boxes only, even if it has a mask head.
    """

    family = FAMILY

    def __init__(self, folder: Path, device: torch.device | str = "cpu", draws_masks: bool = True) -> None:
        self.folder, self.device, self.draws_masks = folder, torch.device(device), draws_masks
        self.text_encoder_calls = 0
        self._tuned: dict[str, Tensor] = {}
        self._lora_scale = 1.0
        self.config = read_config(folder / "config.json")
        if self.config.get("model_type") != MODEL_TYPE:
            raise BackboneError(f"{folder} holds a `{self.config.get('model_type')}` model, not a `{MODEL_TYPE}` one")
        bert = read_config(folder / "text_encoder/config.json")
        with opening(folder):
            Settings.model_validate(self.config)
            self.max_text_tokens = self.config["max_text_tokens"]
            self.sites = {
                "text_tokens": Site(bert["hidden_size"], max_tokens=self.max_text_tokens),
                "text_embeds": Site(bert["hidden_size"], max_tokens=self.max_text_tokens),
            }

    @property
    def has_masks(self) -> bool:
        return self.config.get("mask_head") is not None

    @cached_property
    def vision(self) -> nn.ModuleDict:
        """Backbone and FPN."""
        return self._load("backbone", "neck")

    @cached_property
    def language_model(self) -> "CaptionEncoder":
        return self._load("language_model")["language_model"]

    @cached_property
    def head(self) -> Any:
        """mmdet's `ATSSVLFusionHead`: fusion, boxes and the match of regions with tokens."""
        return self._load("bbox_head")["bbox_head"]

    @cached_property
    def mask_head(self) -> "MaskHead":
        return self._load("mask_head")["mask_head"]

    @torch.inference_mode(False)
    def _load(self, *parts: str) -> nn.ModuleDict:
        """Parts with their weights, frozen. Gradients can pass through them, also where inference mode uses them
        first."""
        from cones.backbones.glip.parts import empty_parts, load_strictly

        prefixes, weights = tuple(f"{name}." for name in parts), self.folder / "model.safetensors"
        if not weights.is_file():
            raise BackboneError(f"the base model in {self.folder} lacks {weights.name}; copy the whole folder again")
        with opening(self.folder):
            module = empty_parts(parts, self.config, self.folder)
            _, state = read_safetensors(weights, BackboneError, "copy the whole folder again", prefixes)
            floats = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
            tuned = {k: v for k, v in self._tuned.items() if k.startswith(prefixes)}
            load_strictly(module, with_tuned(floats, tuned, self._lora_scale), self.folder)
        return module.eval().requires_grad_(False).to(self.device)

    def part(self, name: str) -> nn.Module:
        """One of its parts by the name it has in the state dict, loaded if it is not yet."""
        held = getattr(self, HELD_BY[name])
        return held[name] if isinstance(held, nn.ModuleDict) else held

    def lora_layers(self) -> tuple[str, None]:
        """Low-rank additions go to all linear layers of the detection head."""
        return "bbox_head", None

    def use_weights(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Put fine-tuned weights, named as in the state dict, over the model's own; parts load when they are used.

        `<name>.lora_A` (r, in) and `<name>.lora_B` (out, r) are added to a weight as B A times `about["lora_scale"]`.
        `about["mask_head"]` are the settings of a mask head that the base model has not. `BackboneError` for weights of
        no part; those that do not fit theirs are refused when it loads.
        """
        strange = [name for name in tensors if name.split(".")[0] not in HELD_BY]
        if strange:
            raise BackboneError(f"the fine-tuned weights hold {', '.join(strange[:5])}, which a GLIP does not have")
        self._tuned, self._lora_scale = dict(tensors), about.get("lora_scale", 1.0)
        if "mask_head" in about:
            self.config = {**self.config, "mask_head": about["mask_head"]}
        for held in HELD_BY.values():
            self.__dict__.pop(held, None)

    def add_mask_head(self, seed: int) -> dict[str, Any]:
        """Give a model that has none a mask head with random weights; returns the settings it can be built again by."""
        from cones.backbones.glip.parts import build_part

        head = self.config["bbox_head"]
        width, strides = head["feat_channels"], head["anchor_generator"]["strides"][:NEW_MASK_HEAD_LEVELS]
        settings = {"channels": width, "width": width, "convs": NEW_MASK_HEAD_CONVS, "strides": strides}
        self.config = {**self.config, "mask_head": settings}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made: Any = build_part("mask_head", self.config, self.folder)
        self.mask_head = made.eval().requires_grad_(False).to(self.device)
        return settings

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What is done to a picture before it is encoded, as a Concept records it."""
        return {**self.config["preprocessing"], "resample": "bilinear"}

    def canvas(self, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """The (height, width) that pictures of these sizes all fit into once they are resized."""
        fitted = [self._fitted(size) for size in sizes]
        step = self.config["preprocessing"]["divisor"]
        height, width = (max(side) for side in zip(*fitted))
        return (-(-height // step) * step, -(-width // step) * step)

    @property
    def largest_side(self) -> int:
        """The longest side in pixels that a canvas for pictures of any size has."""
        step = self.config["preprocessing"]["divisor"]
        return -(-max(self.config["preprocessing"]["scale"]) // step) * step

    def _fitted(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width after resizing: the short side as the scale says, unless the long one grows too long."""
        short, long = sorted(self.config["preprocessing"]["scale"])
        factor = min(short / min(size), long / max(size))
        return (max(1, int(size[0] * factor)), max(1, int(size[1] * factor)))  # as mmdet's `FixScaleResize` rounds

    def view(
        self, pictures: Sequence[Image.Image], canvas: tuple[int, int], flipped: bool = False, scale: float = 1.0
    ) -> tuple[Float[Tensor, "b 3 h w"], tuple[Geometry, ...]]:
        """Pictures resized, normalised and padded into a canvas (height, width), mirrored if asked for; `scale` makes
        them smaller yet."""
        import numpy as np

        about = self.config["preprocessing"]
        mean, std = (torch.tensor(about[k]).view(3, 1, 1) for k in ("mean", "std"))
        pixels, geometry = torch.zeros(len(pictures), 3, *canvas), []
        for i, picture in enumerate(pictures):
            height, width = (max(1, int(side * scale)) for side in self._fitted((picture.height, picture.width)))
            array = np.asarray(picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)).copy()
            colours = torch.from_numpy(array).permute(2, 0, 1).float()
            if about["channels"] == "bgr":
                colours = colours.flip(0)
            values = (colours - mean) / std
            pixels[i, :, :height, :width] = values.flip(-1) if flipped else values
            geometry.append(Geometry((picture.height, picture.width), (height, width), canvas, flipped))
        return pixels, tuple(geometry)

    def crop_masks(self, masks: Bool[Tensor, "n h w"], boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n s s"]:
        """Masks cut to their boxes, as the mask head is to draw them."""
        from cones.backbones.glip.masks import SIZE, crop_masks

        return crop_masks(masks, boxes, SIZE)

    @torch.no_grad()
    def encode(
        self, pixels: Float[Tensor, "b 3 h w"], visual_tokens: Float[Tensor, "l m v"] | None = None
    ) -> Mapping[str, Float[Tensor, "b c _ _"]]:
        """The pyramid of each picture, from fine to coarse; `BackboneError` for visual tokens."""
        if visual_tokens is not None:
            refuse_missing_sites({"visual_tokens"}, self)
        return self.pyramid(pixels)

    def pyramid(self, pixels: Float[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, "b c _ _"]]:
        """The same with gradients, where the image encoder is trained."""
        levels = self.vision["neck"](self.vision["backbone"](pixels.to(self.device)))
        return {f"p{i + 3}": level for i, level in enumerate(levels)}

    def embed_text(
        self, names: Sequence[str], tokens: TextTokens | None = None, templates: Sequence[str] = ("{}",)
    ) -> TextEmbeds:
        """The encoder's output for one caption of all class names; with `tokens`, gradients reach them.

        `templates` has one entry here: GLIP reads a caption, not a sentence a class.
        """
        from cones.backbones.glip.text import check_tokens

        language = self.language_model
        self.text_encoder_calls += 1
        if tokens is None:
            caption = language.caption([templates[0].format(name) for name in names])
            with torch.no_grad():
                hidden = language.encode(caption)
        else:
            check_tokens(tokens)
            caption = language.caption(names, tokens.vectors.shape[-2], tokens.slot)
            hidden = language.encode(caption, tokens.vectors)
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        return TextEmbeds(hidden, mask, caption.owner.to(hidden.device))

    def word_vectors(self, words: str) -> Float[Tensor, "n d"]:
        """The token-table rows of some words, to start context tokens from."""
        language = self.language_model
        ids = language.tokenizer(words, add_special_tokens=False, return_tensors="pt").input_ids[0]
        return language.bert.embeddings.word_embeddings(ids.to(self.device)).detach().clone()

    def objective(self, settings: BaseModel | None = None) -> Loss:
        """That of boxes, and of masks where there are any; with `masks_only` in the settings of the masks alone."""
        return self._mask_loss if getattr(settings, "masks_only", False) else self._loss

    def _loss(
        self, features: Features, text: TextEmbeds, generator: torch.Generator | None = None
    ) -> Float[Tensor, ""]:
        """Focal loss of regions against tokens, GIoU of boxes, centerness, and that of masks where there are any."""
        assert features.instances is not None, "these features carry no objects"
        assert features.geometry is not None, "these features do not say where they came from"
        lang, owners = self._language(text, len(features.views))
        from cones.backbones.glip.parts import sample_of

        tokens = len(text.owner)
        samples = [sample_of(g, owners, i, tokens) for g, i in zip(features.geometry, features.instances)]
        self.head.feat_channels = tokens  # the width of its label map: as many as there are tokens, so none is padding
        losses = self.head.loss(tuple(features.tensors.values()), lang, samples)
        total = sum(value for value in losses.values())
        if self.has_masks and all(i.crops is not None for i in features.instances):
            total = total + self.mask_head.loss(self.head.head.fused, features.instances)
        return total

    def _mask_loss(
        self, features: Features, text: TextEmbeds, generator: torch.Generator | None = None
    ) -> Float[Tensor, ""]:
        """That of the masks in the true boxes alone; gradients reach the mask head and nothing else."""
        assert features.instances is not None, "these features carry no objects"
        lang, _ = self._language(text, len(features.views))
        with torch.no_grad():
            self.head(tuple(features.tensors.values()), lang)
        return self.mask_head.loss(self.head.head.fused, features.instances)

    @torch.no_grad()
    def predict(self, features: Features, text: TextEmbeds, least: float = 0.0) -> Predictions:
        """Boxes with a score of at least `least`, scores, labels and perhaps masks, in the pixels of the original
        pictures."""
        assert features.geometry is not None, "these features do not say where they came from"
        lang, owners = self._language(text, len(features.views))
        from cones.backbones.glip.parts import sample_of

        samples = [sample_of(g, owners, None, len(text.owner)) for g in features.geometry]
        found = self.head.predict(tuple(features.tensors.values()), lang, samples)
        found = [one[one.scores >= least] for one in found]
        instances, masks = [], None
        if self.has_masks and self.draws_masks:
            seen = [one.bboxes * one.bboxes.new_tensor(s.scale_factor).repeat(2) for one, s in zip(found, samples)]
            masks = self.mask_head.predict(self.head.head.fused, seen)
        for i, (one, geometry) in enumerate(zip(found, features.geometry)):
            pasted = None if masks is None else self.mask_head.paste(masks[i], one.bboxes, geometry.original)
            instances.append(Instances(one.bboxes, one.labels, pasted, one.scores))
        scores = torch.zeros(len(instances), max(owners), device=text.embeds.device)
        for row, one in zip(scores, instances):
            row.scatter_reduce_(0, one.labels, one.scores, "amax")
        return Predictions(scores, tuple(instances))

    def _language(self, text: TextEmbeds, images: int) -> tuple[dict[str, Tensor], dict[int, list[int]]]:
        """A batch's text as mmdet's head takes it, and the tokens of each class, counted from 1 as there."""
        if len(text.owner) > self.max_text_tokens:
            raise BackboneError(
                f"{len(text.owner)} text tokens are more than the {self.max_text_tokens} this GLIP takes; use fewer "
                "tokens a class or fewer classes"
            )
        hidden = text.embeds.expand(images, -1, -1)
        mask = text.mask.expand(images, -1)
        owner = text.owner.tolist()
        owners = {c + 1: [i for i, o in enumerate(owner) if o == c] for c in range(max(owner) + 1)}
        return {"embedded": hidden * mask[..., None], "hidden": hidden, "masks": mask.long()}, owners
