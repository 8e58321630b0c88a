"""Stable Diffusion's text side: sentences with a place for a concept, and the encoder's forward from token vectors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cones.common.errors import BackboneError
from cones.interfaces.texts import with_rows

GAP = -1


@dataclass(frozen=True)
class Sentences:
    """Padded sentences: `ids` (S, T), `GAP - k` where the vectors of the k-th concept take the place of words; `owner`
    (S, T) is k on the tokens of the k-th concept and -1 on their context."""

    ids: Int[Tensor, "s t"]
    owner: Int[Tensor, "s t"]

    @staticmethod
    def build(tokenizer: Any, templates: Sequence[str], concepts: Mapping[str, str | int]) -> "Sentences":
        """Put concepts, each given as words or as a number of gaps, where a template names them; `{}` has no name.

        A template without `{}` is a sentence as it stands. Raises `BackboneError` for one that the encoder cannot take
        whole, or that names a concept there is none of.
        """
        words = [[GAP - k] * c if isinstance(c, int) else _ids(tokenizer, c) for k, c in enumerate(concepts.values())]
        order, length = list(concepts), tokenizer.model_max_length
        ids, owner = [], []
        for template in templates:
            row, of = [tokenizer.bos_token_id], [-1]
            for literal, name in _pieces(template):
                tokens = _ids(tokenizer, literal)
                row, of = row + tokens, of + [-1] * len(tokens)
                if name is None:
                    continue
                if name not in concepts:
                    known = ", ".join(f"{{{c}}}" for c in order)
                    raise BackboneError(f"`{template}` names the concept {{{name}}}; there are {known}")
                k = order.index(name)
                row, of = row + words[k], of + [k] * len(words[k])
            row, of = [*row, tokenizer.eos_token_id], [*of, -1]
            if len(row) > length:
                raise BackboneError(
                    f"`{template}` with {sum(k >= 0 for k in of)} tokens for the concept makes {len(row)} tokens; this "
                    f"text encoder takes {length}: shorten it"
                )
            padding = length - len(row)
            ids.append(row + [tokenizer.pad_token_id] * padding)
            owner.append(of + [-1] * padding)
        return Sentences(torch.tensor(ids), torch.tensor(owner))


def _pieces(template: str) -> list[tuple[str, str | None]]:
    """The text of a template up to each place for a concept, and the name there; the last has none."""
    try:
        return [(literal, name) for literal, name, _, _ in Formatter().parse(template)]
    except ValueError as error:
        raise BackboneError(f"`{template}` is no template: {error}; a place for a concept is written {{}}") from None


def _ids(tokenizer: Any, words: str) -> list[int]:
    return tokenizer(words.strip(), add_special_tokens=False).input_ids if words.strip() else []


def encode_sentences(
    encoder: Any, sentences: Sentences, vectors: Sequence[Float[Tensor, "_ d"]] = ()
) -> Float[Tensor, "s t d"]:
    """Run a `CLIPTextModel`, with each concept's vectors in its gaps: the forward from vectors that transformers does
    not offer."""
    from transformers.masking_utils import create_causal_mask

    ids = sentences.ids.to(encoder.device)
    if not vectors:
        return encoder(ids).last_hidden_state
    filled = encoder.embeddings.token_embedding(ids.clamp(min=0))
    for k, own in enumerate(vectors):
        times = int((sentences.ids[0] == GAP - k).sum()) // len(own)
        filled = with_rows(filled, ids == GAP - k, own, times)
    hidden = encoder.embeddings(inputs_embeds=filled)
    mask = create_causal_mask(config=encoder.config, inputs_embeds=hidden, attention_mask=None, past_key_values=None)
    hidden = encoder.encoder(inputs_embeds=hidden, attention_mask=mask, is_causal=True).last_hidden_state
    return encoder.final_layer_norm(hidden)
