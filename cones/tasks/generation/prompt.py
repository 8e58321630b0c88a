"""What stands for the text encoder's output for a prompt with Concepts in it, and sampling from it."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from cones.common.errors import ConceptError
from cones.concept.file import Concept
from cones.interfaces.protocols import Paints
from cones.interfaces.texts import TextEmbeds, with_rows

AT_ONCE = 16
"""Pictures that are sampled together."""


def sampled(
    concept: Concept,
    backbone: Paints,
    text: Float[Tensor, "1 t d"],
    n: int,
    seed: int,
    guidance: float | None = None,
    steps: int | None = None,
    first: int = 0,
) -> list[Image.Image]:
    """`n` pictures of a text, the i-th of the noise of (seed, first + i), as the Concept's card has it."""
    card, pictures = concept.card, []
    how = (steps or card.sampling_steps or 0, (card.guidance or 0.0) if guidance is None else guidance)
    for start in range(0, n, AT_ONCE):
        some = text.expand(min(AT_ONCE, n - start), -1, -1)
        pictures += backbone.sample(some, concept.tensors["unconditional"], seed, *how, first=first + start)
    return pictures


def prompt_embeds(
    concept: Concept, backbone: Paints, prompt: str | None = None, others: Mapping[str, Concept] | None = None
) -> Float[Tensor, "1 t d"]:
    """What stands for the text encoder's output for a prompt; the encoder runs for one that is no template only."""
    card = concept.card
    known = card.templates[: len(concept.tensors["sentences"])]
    if not others and (prompt is None or prompt in known):
        row = 0 if prompt is None else known.index(prompt)
        return _tokens(concept.text)[row : row + 1]
    if prompt is None:
        raise ConceptError("several concepts need a prompt that says where each of them stands, as `a {} and a {dog}`")
    parts = {"": concept, **(others or {})}
    for name, part in parts.items():
        _refuse(part, concept, alone=len(parts) == 1, name=name)
    text = backbone.embed_prompt(prompt, {name: _vectors(part, backbone) for name, part in parts.items()})
    embeds = _tokens(text)
    for k, part in enumerate(parts.values()):
        searched = part.tensors["text_embeds"].to(embeds)
        if part.card.method["name"] != "cones":
            continue
        if part.card.method.get("rows", "own") == "own":
            places = text.owner == k
            embeds = with_rows(embeds, places, searched, int(places.sum()) // len(searched))
        else:
            embeds = torch.cat([embeds[:, : -len(searched)], searched[None]], 1)
    return embeds


def _tokens(text: TextEmbeds) -> Float[Tensor, "s t d"]:
    """The tokens of texts that are nothing else: a sentence vector beside them would be lost on the way."""
    if text.pooled is not None:
        raise ConceptError(
            "these texts have a sentence vector beside their tokens (`pooled`); no sampler here takes one"
        )
    return text.embeds


def _vectors(concept: Concept, backbone: Paints) -> Float[Tensor, "n d"]:
    """What stands for a concept at the text encoder's input: its own vectors, or those of its class word, as many as it
    has embeddings."""
    if "searched.vectors" in concept.tensors:
        return concept.tensors["searched.vectors"].float().to(backbone.device)
    word = backbone.word_vectors(concept.card.names[0])
    if concept.card.method.get("rows") != "own":
        return word
    return word[torch.arange(len(concept.tensors["text_embeds"])) % len(word)]


def _refuse(part: Concept, first: Concept, alone: bool, name: str) -> None:
    """`ConceptError` for a Concept that cannot stand in a prompt, or not beside the first one."""
    card = part.card
    refuse_other_task(part)
    rows = card.method.get("rows", "own")
    if rows == "all":
        raise ConceptError(
            f"`{card.concept}` was searched with `rows: all`, so it is a whole sentence and takes no prompt; search it "
            "with `rows: own`, or leave the prompt out"
        )
    if alone:
        return
    if rows != "own":
        raise ConceptError(
            f"`{card.concept}` was searched with `rows: {rows}`, which are the end of a whole sentence; only concepts "
            "with `rows: own` can stand beside others"
        )
    if card.base.sha256 != first.card.base.sha256:
        raise ConceptError(
            f"`{{{name}}}` was searched on {card.base.name}, and the first concept on another base model"
        )
    if part is not first and card.weights_sha256 is not None:
        raise ConceptError(
            f"`{{{name}}}` was fine-tuned, and only the first concept's weights can be used; give it first, or take "
            "the row it came from"
        )


def refuse_other_task(concept: Concept) -> None:
    """`ConceptError` for a Concept that makes no pictures."""
    if concept.card.task != "generation":
        raise ConceptError(f"`{concept.card.concept}` is for {concept.card.task}; use `predict`")
