"""BiomedCLIP: a text encoder of medical papers and a ViT, frozen."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from cones.backbones.clip.clip import Clip
from cones.backbones.clip.vision import through_layers
from cones.backbones.opening import opening
from cones.interfaces.protocols import Site
from cones.interfaces.texts import TextTokens


class BiomedClip(Clip):
    """A frozen BiomedCLIP (Zhang et al. 2023): PubMedBERT and a ViT-B/16, trained on 15 million figures of papers.

    Its text encoder looks both ways, so that padding is masked; pictures are prepared as CLIP's are.
    """

    model_type: ClassVar[str] = "biomedclip"

    def _sites(self, config: Mapping[str, Any]) -> dict[str, Site]:
        text, vision = config["text_config"], config["vision_config"]
        return {
            "text_tokens": Site(text["hidden_size"], max_tokens=config["context_length"] - 2),
            "text_embeds": Site(config["projection_dim"]),
            "visual_tokens": Site(vision["hidden_size"], vision["num_hidden_layers"], patch_size=vision["patch_size"]),
        }

    def _classes(self) -> tuple[Any, Any]:
        from cones.backbones.biomedclip.model import BiomedClipModel

        return BiomedClipModel.config_class, BiomedClipModel

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import BertTokenizer

        with opening(self.folder):
            return BertTokenizer.from_pretrained(self.folder, local_files_only=True)

    def _encode_prompted(
        self, pixels: Float[Tensor, "b 3 h w"], prompts: Float[Tensor, "l m v"]
    ) -> Float[Tensor, "b joint"]:
        vision = self.model.vision_model
        hidden = through_layers(vision.embeddings(pixels), vision.layers, prompts, self.sites["visual_tokens"])
        return self.model.visual_projection(vision.layernorm(hidden[:, 0]))

    @property
    def _ends(self) -> tuple[int, int]:
        return self.tokenizer.cls_token_id, self.tokenizer.sep_token_id

    def _embed_vectors(self, names: Sequence[str], tokens: TextTokens) -> Float[Tensor, "*b c joint"]:
        layout = self._layout(names, tokens)
        hidden = layout.filled(tokens.vectors)
        places = torch.arange(hidden.shape[1])
        mask = (places <= layout.ends[:, None]).long().repeat(len(hidden) // len(names), 1).to(self.device)
        pooled = self.model.get_text_features(inputs_embeds=hidden, attention_mask=mask).pooler_output
        return pooled.view(-1, len(names), pooled.shape[-1]) if tokens.vectors.ndim == 4 else pooled
