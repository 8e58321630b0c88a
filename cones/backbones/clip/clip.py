"""CLIP through transformers' `CLIPModel`: any folder or hub model in that layout, frozen.

Opening one reads its configuration only. The encoders load when they are first used, so that a search on cached
features never loads them.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn import functional as F

from cones.backbones.clip.settings import FAMILY
from cones.backbones.clip.text import SentenceLayout, encode_vectors
from cones.backbones.clip.vision import encode_prompted
from cones.backbones.hub import WEIGHTS
from cones.backbones.opening import opening, read_config, refuse_larger
from cones.backbones.tuned import with_tuned
from cones.common.errors import BackboneError
from cones.interfaces.pictures import Features, Predictions
from cones.interfaces.protocols import Loss, Site
from cones.interfaces.texts import TextEmbeds, TextTokens


class Clip:
    """A frozen CLIP. Image features are (B, d) in the joint space; text is one vector a class there."""

    family = FAMILY

    def __init__(self, folder: Path, device: torch.device | str = "cpu", logit_scale: float | None = None) -> None:
        self.folder, self.device = folder, torch.device(device)
        self.text_encoder_calls = 0
        config = read_config(folder / "config.json")
        if config.get("model_type") != "clip":
            raise BackboneError(f"{folder} holds a `{config.get('model_type')}` model, not a `clip` one")
        if logit_scale is not None:
            self.logit_scale = logit_scale
        with opening(folder):
            text = {"hidden_size": 512, "max_position_embeddings": 77} | config.get("text_config", {})
            vision = {"hidden_size": 768, "num_hidden_layers": 12, "patch_size": 32} | config.get("vision_config", {})
            self.sites = {
                "text_tokens": Site(text["hidden_size"], max_tokens=text["max_position_embeddings"] - 2),
                "text_embeds": Site(config.get("projection_dim", 512)),
                "visual_tokens": Site(
                    vision["hidden_size"], vision["num_hidden_layers"], patch_size=vision["patch_size"]
                ),
            }
        self._layouts: dict[tuple, SentenceLayout] = {}
        self._owner: Tensor | None = None
        self._order: Tensor | None = None

    @cached_property
    def model(self) -> Any:
        """The whole `CLIPModel` in single precision, without gradients."""
        from transformers import CLIPConfig, CLIPModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        with opening(self.folder):
            config = CLIPConfig.from_pretrained(self.folder, local_files_only=True)
            refuse_larger(lambda: CLIPModel(config), self.folder, WEIGHTS)
            model, report = CLIPModel.from_pretrained(
                self.folder, dtype=torch.float32, local_files_only=True, weights_only=True, output_loading_info=True
            )
        lost = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
        if lost:
            raise BackboneError(f"the weights in {self.folder} do not fill the model: {', '.join(lost[:5])}")
        return model.eval().requires_grad_(False).to(self.device)

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import CLIPTokenizer

        with opening(self.folder):
            return CLIPTokenizer.from_pretrained(self.folder, local_files_only=True)

    @cached_property
    def processor(self) -> Any:
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        with opening(self.folder):
            return CLIPImageProcessorPil.from_pretrained(self.folder, local_files_only=True)

    @cached_property
    def logit_scale(self) -> float:
        """The temperature's inverse that image-text similarities are multiplied by."""
        return float(self.model.logit_scale.exp())

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What is done to a picture before it is encoded, as a Concept records it."""
        p = self.processor
        return {
            "shortest_edge": p.size["shortest_edge"],
            "crop": [p.crop_size["height"], p.crop_size["width"]],
            "mean": list(p.image_mean),
            "std": list(p.image_std),
            "resample": "bicubic",
        }

    def pixels(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "b 3 h w"]:
        """Resize, centre-crop and normalise pictures as this model expects them."""
        return self.processor(list(pictures), return_tensors="pt")["pixel_values"]

    def encode(
        self, pixels: Float[Tensor, "b 3 h w"], visual_tokens: Float[Tensor, "l m v"] | None = None
    ) -> Mapping[str, Float[Tensor, "b d"]]:
        """The joint-space feature of each picture, of unit length.

        Visual tokens stand between CLS and the patches, at the input or anew at each of the first layers; gradients
        reach them.
        """
        pixels = pixels.to(self.device)
        if visual_tokens is not None:
            found = encode_prompted(self.model, pixels, visual_tokens.to(self.device), self.sites["visual_tokens"])
            return {"image": F.normalize(found, dim=-1)}
        with torch.inference_mode():
            return {"image": F.normalize(self.model.get_image_features(pixels).pooler_output, dim=-1)}

    def embed_text(
        self, names: Sequence[str], tokens: TextTokens | None = None, templates: Sequence[str] = ("{}.",)
    ) -> TextEmbeds:
        """One joint-space vector a class.

        With `tokens`, they and the name make the sentence and gradients reach them. Without, each name goes through
        all `templates`, and the normalised results are averaged (Radford et al. 2021, section 3.1.4).
        """
        if tokens is not None:
            layout = self._layout(tuple(names), tokens)
            self.text_encoder_calls += len(tokens.vectors) if tokens.vectors.ndim == 4 else 1
            return TextEmbeds.one_per_class(encode_vectors(self.model, layout, tokens.vectors))
        with torch.no_grad():
            total = torch.zeros(len(names), self.sites["text_embeds"].width, device=self.device)
            for template in templates:
                ids = self._tokenise([template.format(name) for name in names])
                self.text_encoder_calls += 1
                total += F.normalize(self.model.get_text_features(**ids.to(self.device)).pooler_output, dim=-1)
        return TextEmbeds.one_per_class(F.normalize(total, dim=-1))

    def part(self, name: str) -> nn.Module:
        """A part of the `CLIPModel` by its name in the state dict."""
        return self.model.get_submodule(name)

    def use_weights(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Put fine-tuned weights, named as in the state dict, over the model's own.

        `<name>.lora_A` (r, in) and `<name>.lora_B` (out, r) are added to a weight as B A times `about["lora_scale"]`.
        """
        own = self.model.state_dict()
        strange = [n for n in tensors if n.removesuffix(".lora_A").removesuffix(".lora_B") not in own]
        if strange:
            raise BackboneError(f"the fine-tuned weights hold {', '.join(strange[:5])}, which this CLIP does not have")
        self.model.load_state_dict(with_tuned(own, tensors, about.get("lora_scale", 1.0)))

    def word_vectors(self, words: str) -> Float[Tensor, "n d"]:
        """The token-table rows of some words, to start context tokens from."""
        ids = self.tokenizer(words, add_special_tokens=False, return_tensors="pt").input_ids[0]
        return self.model.text_model.embeddings.token_embedding(ids.to(self.device)).clone()

    def logits(self, features: Features, text: TextEmbeds) -> Float[Tensor, "b c"]:
        """Scaled cosine similarities; that of class k is with the token whose owner is k."""
        image, embeds = features.tensors["image"], self._in_class_order(text)
        if len(embeds) == 1:
            return F.linear(self.logit_scale * image, F.normalize(embeds.squeeze(0), dim=-1))
        return self.logit_scale * torch.einsum("bd,bcd->bc", image, F.normalize(embeds, dim=-1))

    def objective(self, settings: BaseModel | None = None) -> Loss:
        """Cross entropy over the classes."""

        def loss(features: Features, text: TextEmbeds, generator: torch.Generator | None = None) -> Float[Tensor, ""]:
            assert features.labels is not None, "these features carry no labels"
            return F.cross_entropy(self.logits(features, text), features.labels)

        return loss

    def _in_class_order(self, text: TextEmbeds) -> Float[Tensor, "b c d"]:
        """The one embedding of each class. A search hands over the same `owner` at every step, and looking at it waits
        for a GPU, so it is looked at once."""
        if text.owner is not self._owner:
            self._owner, self._order = text.owner, _order_of(text.owner, text.embeds.shape[1])
        return text.embeds if self._order is None else text.embeds[:, self._order]

    @torch.no_grad()
    def predict(self, features: Features, text: TextEmbeds) -> Predictions:
        """Class probabilities."""
        return Predictions(self.logits(features, text).softmax(-1))

    def _tokenise(self, sentences: Sequence[str]) -> Any:
        ids = self.tokenizer(list(sentences), padding=True, return_tensors="pt")
        room = self.sites["text_tokens"].max_tokens or 0
        if ids.input_ids.shape[1] > room + 2:
            longest = max(sentences, key=lambda s: len(self.tokenizer(s).input_ids))
            raise BackboneError(f"`{longest}` is longer than the {room} tokens this text encoder takes; shorten it")
        return ids

    def _layout(self, names: tuple[str, ...], tokens: TextTokens) -> SentenceLayout:
        key = (names, tokens.slot, tokens.vectors.shape[-2])
        if key not in self._layouts:
            self._layouts[key] = SentenceLayout.build(self.model, self.tokenizer, *key)
        return self._layouts[key]


def _order_of(owner: Int[Tensor, " c"], count: int) -> Int[Tensor, " c"] | None:
    """The places of `count` embeddings by the class that owns each, None where they stand so; `BackboneError` where
    `owner` does not give one to each class."""
    classes = torch.arange(count, device=owner.device)
    if torch.equal(owner, classes):
        return None
    ordered, order = owner.sort()
    if not torch.equal(ordered, classes):
        raise BackboneError(
            f"CLIP takes one embedding for each of {count} classes, and these are of the classes {owner.tolist()}; "
            "search the row again"
        )
    return order
