"""Stable Diffusion's text side: sentences with a place for a concept, and the encoder's forward from token vectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cones.errors import BackboneError

GAP = -1


@dataclass(frozen=True)
class Sentences:
    """Padded sentences: `ids` (S, T), `GAP` where vectors take the place of words; `owner` (S, T) is 0 on the tokens
    of the concept and -1 on its context."""

    ids: Int[Tensor, "s t"]
    owner: Int[Tensor, "s t"]

    @staticmethod
    def build(tokenizer: Any, templates: Sequence[str], concept: str | int) -> "Sentences":
        """Put a concept in the place of `{}` in each template: words, or a number of gaps.

        A template without `{}` is a sentence as it stands. Raises `BackboneError` for one that the encoder cannot take
        whole.
        """
        word = [GAP] * concept if isinstance(concept, int) else _ids(tokenizer, concept)
        length, ids, owner = tokenizer.model_max_length, [], []
        for template in templates:
            before, *after = template.split("{}")
            start = [tokenizer.bos_token_id, *_ids(tokenizer, before)]
            middle = word if after else []
            end = [*_ids(tokenizer, after[0] if after else ""), tokenizer.eos_token_id]
            whole = [*start, *middle, *end]
            if len(whole) > length:
                raise BackboneError(
                    f"`{template}` with {len(middle)} tokens for the concept makes {len(whole)} tokens; this text "
                    f"encoder takes {length}: shorten it"
                )
            padding = length - len(whole)
            ids.append(whole + [tokenizer.pad_token_id] * padding)
            owner.append([-1] * len(start) + [0] * len(middle) + [-1] * (len(end) + padding))
        return Sentences(torch.tensor(ids), torch.tensor(owner))


def _ids(tokenizer: Any, words: str) -> list[int]:
    return tokenizer(words.strip(), add_special_tokens=False).input_ids if words.strip() else []


def encode_sentences(
    encoder: Any, sentences: Sentences, vectors: Float[Tensor, "n d"] | None = None
) -> Float[Tensor, "s t d"]:
    """Run a `CLIPTextModel`, with `vectors` in the gaps: the forward from vectors that transformers does not offer."""
    from transformers.masking_utils import create_causal_mask

    ids = sentences.ids.to(encoder.device)
    if vectors is None:
        return encoder(ids).last_hidden_state
    filled = encoder.embeddings.token_embedding(ids.clamp(min=0)).masked_scatter(
        (ids == GAP)[..., None], vectors.expand(len(ids), *vectors.shape)
    )
    hidden = encoder.embeddings(inputs_embeds=filled)
    mask = create_causal_mask(config=encoder.config, inputs_embeds=hidden, attention_mask=None, past_key_values=None)
    hidden = encoder.encoder(inputs_embeds=hidden, attention_mask=mask, is_causal=True).last_hidden_state
    return encoder.final_layer_norm(hidden)
