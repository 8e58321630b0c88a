"""What models of pictures and texts that meet in one space have in common, as transformers has them, frozen.

Opening one reads its configuration only. The encoders load when they are first used, so that a search on cached
features never loads them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from PIL import Image
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn import functional as F

from cones.backbones.hub import WEIGHTS
from cones.backbones.opening import opening, read_config, refuse_larger
from cones.backbones.settings import Family
from cones.backbones.tuned import with_tuned
from cones.common.errors import BackboneError
from cones.interfaces.pictures import Features, Predictions
from cones.interfaces.protocols import Loss, Site
from cones.interfaces.texts import TextEmbeds, TextTokens

ATTENDING = (".q_proj", ".k_proj", ".v_proj", ".query", ".key", ".value")
"""What transformers calls queries, keys and values; the last three in a BERT."""


class TwoEncoders(ABC):
    """A frozen model whose image features are (B, d) in the joint space, and whose text is one vector a class there."""

    family: Family = "dual_encoder"
    model_type: ClassVar[str]
    """As its config.json has it."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu", logit_scale: float | None = None) -> None:
        self.folder, self.device = folder, torch.device(device)
        self.text_encoder_calls = 0
        config = read_config(folder / "config.json")
        if config.get("model_type") != self.model_type:
            raise BackboneError(f"{folder} holds a `{config.get('model_type')}` model, not a `{self.model_type}` one")
        if logit_scale is not None:
            self.logit_scale = logit_scale
        with opening(folder):
            self.sites = self._sites(config)
        self._owner: Tensor | None = None
        self._order: Tensor | None = None

    @abstractmethod
    def _sites(self, config: Mapping[str, Any]) -> dict[str, Site]:
        """Where vectors can enter, by its configuration."""

    @abstractmethod
    def _classes(self) -> tuple[Any, Any]:
        """The classes of its configuration and of the model."""

    @property
    @abstractmethod
    def processor(self) -> Any:
        """What prepares pictures."""

    @property
    @abstractmethod
    def tokenizer(self) -> Any: ...

    @abstractmethod
    def _tokenise(self, sentences: Sequence[str]) -> Mapping[str, Tensor]:
        """Sentences as the text encoder takes them; `BackboneError` for one that is too long."""

    @abstractmethod
    def _embed_vectors(self, names: Sequence[str], tokens: TextTokens) -> Float[Tensor, "*b c joint"]:
        """Names with a method's own vectors through the text encoder; gradients reach the vectors."""

    @property
    @abstractmethod
    def preprocessing(self) -> dict[str, Any]:
        """What is done to a picture before it is encoded, as a Concept records it."""

    @cached_property
    @torch.inference_mode(False)
    def model(self) -> Any:
        """The whole model in single precision, without gradients. They can pass through it, also where inference mode
        uses it first."""
        from transformers.utils import logging

        config_class, model_class = self._classes()
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        with opening(self.folder):
            config = config_class.from_pretrained(self.folder, local_files_only=True)
            refuse_larger(lambda: model_class(config), self.folder, WEIGHTS)
            model, report = model_class.from_pretrained(
                self.folder, dtype=torch.float32, local_files_only=True, weights_only=True, output_loading_info=True
            )
        lost = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
        if lost:
            raise BackboneError(f"the weights in {self.folder} do not fill the model: {', '.join(lost[:5])}")
        return model.eval().requires_grad_(False).to(self.device)

    @cached_property
    def logit_scale(self) -> float:
        """The temperature's inverse that image-text similarities are multiplied by."""
        return float(self.model.logit_scale.exp())

    def pixels(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "b 3 h w"]:
        """Resize, crop and normalise pictures as this model expects them."""
        return self.processor(list(pictures), return_tensors="pt")["pixel_values"]

    def encode(
        self, pixels: Float[Tensor, "b 3 h w"], visual_tokens: Float[Tensor, "l m v"] | None = None
    ) -> Mapping[str, Float[Tensor, "b d"]]:
        """The joint-space feature of each picture, of unit length.

        Visual tokens stand between CLS and the patches, at the input or anew at each of the first layers; gradients
        reach them, and the image encoder where it is trained.
        """
        if visual_tokens is not None:
            found = self._encode_prompted(pixels.to(self.device), visual_tokens.to(self.device))
            return {"image": F.normalize(found, dim=-1)}
        trained = any(p.requires_grad for p in self.model.vision_model.parameters())
        with torch.inference_mode(not trained):
            found = self.model.get_image_features(pixels.to(self.device)).pooler_output
            return {"image": F.normalize(found, dim=-1)}

    def _encode_prompted(
        self, pixels: Float[Tensor, "b 3 h w"], prompts: Float[Tensor, "l m v"]
    ) -> Float[Tensor, "b joint"]:
        """Pictures with visual tokens in the joint space, not of unit length; for those with a site for them."""
        raise BackboneError(f"{self.folder} has no site for visual tokens")

    def embed_text(
        self, names: Sequence[str], tokens: TextTokens | None = None, templates: Sequence[str] = ("{}.",)
    ) -> TextEmbeds:
        """One joint-space vector a class.

        With `tokens`, they and the name make the sentence and gradients reach them. Without, each name goes through
        all `templates`, and the normalised results are averaged (Radford et al. 2021, section 3.1.4); gradients reach
        the text encoder where it is trained.
        """
        if tokens is not None:
            found = self._embed_vectors(names, tokens)
            self.text_encoder_calls += len(tokens.vectors) if tokens.vectors.ndim == 4 else 1
            return TextEmbeds.one_per_class(found)
        total = torch.zeros(len(names), self.sites["text_embeds"].width, device=self.device)
        for template in templates:
            ids = {k: t.to(self.device) for k, t in self._tokenise([template.format(name) for name in names]).items()}
            self.text_encoder_calls += 1
            total = total + F.normalize(self.model.get_text_features(**ids).pooler_output, dim=-1)
        return TextEmbeds.one_per_class(F.normalize(total, dim=-1))

    def part(self, name: str) -> nn.Module:
        """A part of the model by its name in the state dict; the whole by an empty one."""
        return self.model.get_submodule(name)

    def lora_layers(self) -> tuple[str, list[str]]:
        """The queries, keys and values of all layers of both encoders, by their names in the whole model."""
        names = [name for name, _ in self.model.named_modules()]
        return "", [name for name in names if name.endswith(ATTENDING)]

    def use_weights(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Put fine-tuned weights, named as in the state dict, over the model's own.

        `<name>.lora_A` (r, in) and `<name>.lora_B` (out, r) are added to a weight as B A times `about["lora_scale"]`.
        """
        own = self.model.state_dict()
        strange = [n for n in tensors if n.removesuffix(".lora_A").removesuffix(".lora_B") not in own]
        if strange:
            raise BackboneError(
                f"the fine-tuned weights hold {', '.join(strange[:5])}, which this {self.model_type} does not have"
            )
        self.model.load_state_dict(with_tuned(own, tensors, about.get("lora_scale", 1.0)))

    def word_vectors(self, words: str) -> Float[Tensor, "n d"]:
        """The token-table rows of some words, to start context tokens from."""
        ids = self.tokenizer(words, add_special_tokens=False, return_tensors="pt").input_ids[0]
        return self.model.text_model.get_input_embeddings()(ids.to(self.device)).clone()

    def logits(self, features: Features, text: TextEmbeds) -> Float[Tensor, "b c"]:
        """Scaled cosine similarities; that of class k is with the token whose owner is k. See `TextEmbeds` for what
        stands in their place, or beside them."""
        image, embeds = features.tensors["image"], self._in_class_order(text)
        if text.bias is not None:
            return F.linear(image, embeds.squeeze(0), text.bias)
        if len(embeds) == 1:
            found = F.linear(self.logit_scale * image, F.normalize(embeds.squeeze(0), dim=-1))
        else:
            found = self.logit_scale * torch.einsum("bd,bcd->bc", image, F.normalize(embeds, dim=-1))
        return found if text.pictures is None else found + text.pictures.logits(image, embeds.shape[1])

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
