"""CLIP's text encoder from token vectors: the forward that transformers' text model does not offer."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cones.backbones.layout import SentenceLayout, arranged
from cones.common.errors import BackboneError
from cones.interfaces.texts import Slot


def lay_out(
    tokenizer: Any, ends: tuple[int, int], room: int, table: nn.Embedding, names: Sequence[str], slot: Slot, n: int
) -> SentenceLayout:
    """Lay out `start, vectors and name, full stop, end` for each name, with `n` vectors at `slot`.

    `ends` are the ids of start and end. Sentences are cut to the longest, and filled up to it with what ends them.
    `BackboneError` for one of more than `room` tokens.
    """
    words = [tokenizer(name, add_special_tokens=False).input_ids for name in names]
    alone, ended = (tokenizer(text, add_special_tokens=False).input_ids for text in ("a", "a."))
    stop = ended[len(alone) :]  # as it follows a word
    sentences = [[ends[0], *arranged(word, n, slot), *stop, ends[1]] for word in words]
    longest = max(map(len, sentences))
    if longest > room:
        name = names[max(range(len(names)), key=lambda i: len(sentences[i]))]
        raise BackboneError(f"{n} context tokens and `{name}` make {longest} tokens; this text encoder takes {room}")
    return SentenceLayout.build(sentences, ends[1], longest, table)


def encode_vectors(
    model: Any, layout: SentenceLayout, vectors: Float[Tensor, "*lead n d"]
) -> Float[Tensor, "*b c joint"]:
    """Fill the gaps of a layout and run the text encoder: (C, joint), or (B, C, joint) for vectors (B, 1, n, d).

    What follows an end token cannot reach it, since attention is causal.
    """
    from transformers.masking_utils import create_causal_mask

    text = model.text_model
    hidden = text.embeddings(inputs_embeds=layout.filled(vectors))
    mask = create_causal_mask(config=text.config, inputs_embeds=hidden, attention_mask=None, past_key_values=None)
    hidden = text.encoder(inputs_embeds=hidden, attention_mask=mask, is_causal=True).last_hidden_state
    hidden = text.final_layer_norm(hidden)
    ends = layout.ends.repeat(len(hidden) // len(layout.ends))
    pooled = model.text_projection(hidden[torch.arange(len(ends), device=ends.device), ends])
    return pooled.view(-1, len(layout.ends), pooled.shape[-1]) if vectors.ndim == 4 else pooled
