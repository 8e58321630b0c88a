"""CLIP through transformers' `CLIPModel`: any folder or hub model in that layout, frozen."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from cones.backbones.clip.text import encode_vectors, lay_out
from cones.backbones.clip.vision import attention, encode_prompted
from cones.backbones.dual import TwoEncoders
from cones.backbones.layout import SentenceLayout
from cones.backbones.opening import opening
from cones.common.errors import BackboneError
from cones.interfaces.protocols import Site
from cones.interfaces.texts import TextTokens


class Clip(TwoEncoders):
    """A frozen CLIP (Radford et al. 2021)."""

    model_type: ClassVar[str] = "clip"

    def __init__(self, folder: Path, device: torch.device | str = "cpu", logit_scale: float | None = None) -> None:
        super().__init__(folder, device, logit_scale)
        self._layouts: dict[tuple, SentenceLayout] = {}

    def _sites(self, config: Mapping[str, Any]) -> dict[str, Site]:
        text = {"hidden_size": 512, "max_position_embeddings": 77} | config.get("text_config", {})
        vision = {"hidden_size": 768, "num_hidden_layers": 12, "patch_size": 32} | config.get("vision_config", {})
        return {
            "text_tokens": Site(text["hidden_size"], max_tokens=text["max_position_embeddings"] - 2),
            "text_embeds": Site(config.get("projection_dim", 512)),
            "visual_tokens": Site(vision["hidden_size"], vision["num_hidden_layers"], patch_size=vision["patch_size"]),
        }

    def _classes(self) -> tuple[Any, Any]:
        from transformers import CLIPConfig, CLIPModel

        return CLIPConfig, CLIPModel

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

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The shortest edge resized, the middle cut out, normalised."""
        p = self.processor
        return {
            "shortest_edge": p.size["shortest_edge"],
            "crop": [p.crop_size["height"], p.crop_size["width"]],
            "mean": list(p.image_mean),
            "std": list(p.image_std),
            "resample": "bicubic",
        }

    def _encode_prompted(
        self, pixels: Float[Tensor, "b 3 h w"], prompts: Float[Tensor, "l m v"]
    ) -> Float[Tensor, "b joint"]:
        return encode_prompted(self.model, pixels, prompts, self.sites["visual_tokens"])

    @torch.no_grad()
    def attention(
        self, pixels: Float[Tensor, "b 3 h w"], visual_tokens: Float[Tensor, "l m v"]
    ) -> Float[Tensor, "b q rows columns"]:
        """What CLS and each visual token of the last layer attend to; see `cones.backbones.clip.vision.attention`."""
        tokens, site = visual_tokens.to(self.device), self.sites["visual_tokens"]
        return attention(self.model, pixels.to(self.device), tokens, site).cpu()

    def _tokenise(self, sentences: Sequence[str]) -> Mapping[str, Tensor]:
        ids = self.tokenizer(list(sentences), padding=True, return_tensors="pt")
        room = self.sites["text_tokens"].max_tokens or 0
        if ids.input_ids.shape[1] > room + 2:
            longest = max(sentences, key=lambda s: len(self.tokenizer(s).input_ids))
            raise BackboneError(f"`{longest}` is longer than the {room} tokens this text encoder takes; shorten it")
        return {"input_ids": ids.input_ids, "attention_mask": ids.attention_mask}

    def _layout(self, names: Sequence[str], tokens: TextTokens) -> SentenceLayout:
        """Names laid out for a method's vectors, once."""
        key = (tuple(names), tokens.slot, tokens.vectors.shape[-2])
        if key not in self._layouts:
            room = (self.sites["text_tokens"].max_tokens or 0) + 2
            table = self.model.text_model.get_input_embeddings()
            self._layouts[key] = lay_out(self.tokenizer, self._ends, room, table, *key)
        return self._layouts[key]

    @property
    def _ends(self) -> tuple[int, int]:
        """The ids of what begins and ends a sentence."""
        return self.tokenizer.bos_token_id, self.tokenizer.eos_token_id

    def _embed_vectors(self, names: Sequence[str], tokens: TextTokens) -> Float[Tensor, "*b c joint"]:
        return encode_vectors(self.model, self._layout(names, tokens), tokens.vectors)
