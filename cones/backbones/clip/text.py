"""CLIP's text encoder from token vectors: the forward that transformers' text model does not offer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cones.common.errors import BackboneError
from cones.interfaces.texts import Slot


@dataclass(frozen=True)
class SentenceLayout:
    """Sentences with gaps, one a class: token vectors where words are known, and where the searched ones go.

    Sentences are cut to the longest; what follows an end token cannot reach it, since attention is causal.
    """

    fixed: Float[Tensor, "c t d"]
    gaps: Int[Tensor, "c n"]
    ends: Int[Tensor, " c"]

    @staticmethod
    def build(model: Any, tokenizer: Any, names: Sequence[str], slot: Slot, n: int) -> "SentenceLayout":
        """Lay out `start, vectors and name, full stop, end` for each name, with `n` vectors at `slot`."""
        start, end, gap = tokenizer.bos_token_id, tokenizer.eos_token_id, -1
        stop = tokenizer(".", add_special_tokens=False).input_ids
        sentences = []
        for name in names:
            word = tokenizer(name, add_special_tokens=False).input_ids
            match slot:
                case "before":
                    body = [gap] * n + word
                case "after":
                    body = word + [gap] * n
                case "around":
                    body = [gap] * (n // 2) + word + [gap] * (n - n // 2)
                case "name":
                    body = [gap] * n
            sentences.append([start, *body, *stop, end])
        longest = max(map(len, sentences))
        room = model.config.text_config.max_position_embeddings
        if longest > room:
            name = names[max(range(len(names)), key=lambda i: len(sentences[i]))]
            raise BackboneError(
                f"{n} context tokens and `{name}` make {longest} tokens; this text encoder takes {room}"
            )
        ids = torch.tensor([s + [end] * (longest - len(s)) for s in sentences])
        gaps = torch.stack([(row == gap).nonzero()[:, 0] for row in ids])
        ends = torch.tensor([len(s) - 1 for s in sentences])
        table = model.text_model.embeddings.token_embedding
        device = table.weight.device
        with torch.no_grad():
            fixed = table(ids.clamp(min=0).to(device))
        return SentenceLayout(fixed, gaps.to(device), ends.to(device))


def encode_vectors(
    model: Any, layout: SentenceLayout, vectors: Float[Tensor, "*lead n d"]
) -> Float[Tensor, "*b c joint"]:
    """Fill the gaps of a layout and run the text encoder: (C, joint), or (B, C, joint) for vectors (B, 1, n, d)."""
    from transformers.masking_utils import create_causal_mask

    classes, length, width = layout.fixed.shape
    images = vectors.shape[0] if vectors.ndim == 4 else 1
    filling = vectors.expand(images, classes, *vectors.shape[-2:])
    at = layout.gaps[None, :, :, None].expand(images, -1, -1, width)
    filled = layout.fixed.expand(images, -1, -1, -1).scatter(2, at, filling).reshape(-1, length, width)

    text = model.text_model
    hidden = text.embeddings(inputs_embeds=filled)
    mask = create_causal_mask(config=text.config, inputs_embeds=hidden, attention_mask=None, past_key_values=None)
    hidden = text.encoder(inputs_embeds=hidden, attention_mask=mask, is_causal=True).last_hidden_state
    hidden = text.final_layer_norm(hidden)
    ends = layout.ends.repeat(images)
    pooled = model.text_projection(hidden[torch.arange(len(ends), device=ends.device), ends])
    return pooled.view(images, classes, -1) if vectors.ndim == 4 else pooled
