"""SigLIP through transformers' `SiglipModel`: any folder or hub model in that layout, frozen."""

import re
import string
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from cones.backbones.dual import TwoEncoders
from cones.backbones.layout import SentenceLayout, arranged
from cones.backbones.opening import opening
from cones.common.errors import BackboneError
from cones.interfaces.protocols import Site
from cones.interfaces.texts import TextTokens

NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Siglip(TwoEncoders):
    """A frozen SigLIP (Zhai et al. 2023), or a SigLIP 2 of one resolution (Tschannen et al. 2025).

    Its text encoder takes as many tokens as it has places for, padding among them, and pools at the last one. Its
    sigmoid has a bias, one for all classes; where pictures show one class each it cancels in their probabilities.
    """

    model_type: ClassVar[str] = "siglip"

    def __init__(self, folder: Path, device: torch.device | str = "cpu", logit_scale: float | None = None) -> None:
        super().__init__(folder, device, logit_scale)
        self._layouts: dict[tuple, SentenceLayout] = {}

    def _sites(self, config: Mapping[str, Any]) -> dict[str, Site]:
        text = {"hidden_size": 768, "max_position_embeddings": 64} | config.get("text_config", {})
        return {
            "text_tokens": Site(text["hidden_size"], max_tokens=text["max_position_embeddings"] - 1),
            "text_embeds": Site(text.get("projection_size") or text["hidden_size"]),
        }

    def _classes(self) -> tuple[Any, Any]:
        from transformers import SiglipConfig, SiglipModel

        return SiglipConfig, SiglipModel

    @cached_property
    def tokenizer(self) -> Any:
        """That of its tokenizer.json: SentencePiece's in the first SigLIP, Gemma's in the second."""
        from transformers import PreTrainedTokenizerFast

        with opening(self.folder):
            return PreTrainedTokenizerFast.from_pretrained(self.folder, local_files_only=True)

    @cached_property
    def processor(self) -> Any:
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        with opening(self.folder):
            return SiglipImageProcessorPil.from_pretrained(self.folder, local_files_only=True)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The whole picture resized to a square, normalised."""
        p = self.processor
        size = [p.size["height"], p.size["width"]]
        return {"size": size, "mean": list(p.image_mean), "std": list(p.image_std), "resample": int(p.resample)}

    def _words(self, text: str) -> list[int]:
        """The ids of words as it was trained on them: in small letters, without punctuation."""
        said = re.sub(r"\s+", " ", text.lower().translate(NO_PUNCTUATION)).strip()
        return list(self.tokenizer(said, add_special_tokens=False).input_ids)

    def _ended(self, body: Sequence[int], said: str) -> list[int]:
        """A sentence with its end; `BackboneError` for one that is too long."""
        room = self.sites["text_tokens"].max_tokens or 0
        if len(body) > room:
            raise BackboneError(f"`{said}` is {len(body)} tokens; this text encoder takes {room}: shorten it")
        return [*body, self.tokenizer.eos_token_id]

    def _tokenise(self, sentences: Sequence[str]) -> Mapping[str, Tensor]:
        length = (self.sites["text_tokens"].max_tokens or 0) + 1
        ids = [self._ended(self._words(one), one) for one in sentences]
        return {"input_ids": torch.tensor([[*s, *[self.tokenizer.pad_token_id] * (length - len(s))] for s in ids])}

    def _embed_vectors(self, names: Sequence[str], tokens: TextTokens) -> Float[Tensor, "*b c joint"]:
        from transformers.masking_utils import create_bidirectional_mask

        n, text = tokens.vectors.shape[-2], self.model.text_model
        key = (tuple(names), tokens.slot, n)
        if key not in self._layouts:
            sentences = [
                self._ended(arranged(self._words(name), n, tokens.slot), f"{name} and {n} vectors") for name in names
            ]
            length = (self.sites["text_tokens"].max_tokens or 0) + 1
            table = text.embeddings.token_embedding
            self._layouts[key] = SentenceLayout.build(sentences, self.tokenizer.pad_token_id, length, table)
        hidden = text.embeddings(inputs_embeds=self._layouts[key].filled(tokens.vectors))
        mask = create_bidirectional_mask(config=text.config, inputs_embeds=hidden, attention_mask=None)
        hidden = text.encoder(inputs_embeds=hidden, attention_mask=mask).last_hidden_state
        pooled = text.head(text.final_layer_norm(hidden)[:, -1])
        return pooled.view(-1, len(names), pooled.shape[-1]) if tokens.vectors.ndim == 4 else pooled
