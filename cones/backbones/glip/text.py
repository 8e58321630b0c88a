"""GLIP's text encoder: a BERT over one caption that lists the class names, from words or from token vectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from mmdet.registry import MODELS
from torch import Tensor, nn

from cones.common.errors import BackboneError
from cones.interfaces.texts import Slot, TextTokens

GAP = -1


@dataclass(frozen=True)
class Caption:
    """`[CLS] name . name [SEP]` as token ids (T,), `GAP` where searched vectors go; `owner` (T,) as in TextEmbeds."""

    ids: Int[Tensor, " t"]
    owner: Int[Tensor, " t"]


@MODELS.register_module()
class CaptionEncoder(nn.Module):
    """The `language_model` of a GLIP, with the parameter names of mmdet's. `name` is a folder with BERT's configuration
    and tokenizer; the weights are those of the GLIP checkpoint."""

    def __init__(self, name: str, max_tokens: int = 256) -> None:
        super().__init__()
        from transformers import AutoTokenizer, BertConfig, BertModel

        self.max_tokens = max_tokens
        self.tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=False)
        bert = BertModel(BertConfig.from_pretrained(name, local_files_only=True), add_pooling_layer=False)
        self.language_backbone = nn.ModuleDict({"body": nn.ModuleDict({"model": bert})})

    @property
    def bert(self) -> Any:
        return self.language_backbone["body"]["model"]

    def caption(self, names: Sequence[str], gaps: int = 0, slot: Slot = "before") -> Caption:
        """Lay out a caption with `gaps` vectors before, around or after each name, or in its place.

        Full stops stand between names, as in mmdet's GLIP. Names are taken as they are: mmdet cuts underscores and what
        is in parentheses from its data sets' labels. `BackboneError` for a name without tokens, and for too many.
        """
        t = self.tokenizer
        stop = t(".", add_special_tokens=False).input_ids
        ids, owner = [t.cls_token_id], [-1]
        for i, name in enumerate(names):
            body = _around(t(name, add_special_tokens=False).input_ids, gaps, slot)
            if not body:
                raise BackboneError(f"the text encoder reads nothing in `{name}`, the name of class {i + 1}; use words")
            if i:
                ids += stop
                owner += [-1] * len(stop)
            ids += body
            owner += [i] * len(body)
        ids.append(t.sep_token_id)
        owner.append(-1)
        if len(ids) > self.max_tokens:
            raise BackboneError(
                f"{len(names)} classes make {len(ids)} text tokens; this GLIP takes {self.max_tokens}: shorten the "
                "names, use fewer tokens a class, or divide the classes over several concepts and join them"
            )
        return Caption(torch.tensor(ids), torch.tensor(owner))

    def encode(self, caption: Caption, vectors: Float[Tensor, "*classes n d"] | None = None) -> Float[Tensor, "1 t d"]:
        """The last hidden layer of a caption; `vectors` fill its gaps, shared by the classes or one set for each."""
        table = self.bert.embeddings.word_embeddings
        ids = caption.ids.to(table.weight.device)
        embeds = table(ids.clamp(min=0))
        if vectors is not None:
            gaps = (ids == GAP).nonzero()[:, 0]
            filling = vectors if vectors.ndim == 3 else vectors.expand(len(gaps) // len(vectors), *vectors.shape)
            embeds = embeds.index_put((gaps,), filling.reshape(-1, filling.shape[-1]).to(embeds.dtype))
        return self.bert(inputs_embeds=embeds[None]).last_hidden_state


def _around(word: list[int], gaps: int, slot: Slot) -> list[int]:
    """The tokens of a name with places for vectors."""
    match slot:
        case "before":
            return [GAP] * gaps + word
        case "after":
            return word + [GAP] * gaps
        case "around":
            return [GAP] * (gaps // 2) + word + [GAP] * (gaps - gaps // 2)
        case "name":
            return [GAP] * gaps


def check_tokens(tokens: TextTokens) -> None:
    """`BackboneError` for token vectors that differ from image to image: one caption serves all."""
    if tokens.vectors.ndim == 4:
        raise BackboneError("GLIP reads one caption for all images; prompts that differ by image are for CLIP")
