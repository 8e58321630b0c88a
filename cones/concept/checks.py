"""What a Concept must be: its card by the settings there are, its tensors and weights by card and base model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from cones.common.errors import ConceptError
from cones.common.messages import first_mistake
from cones.common.tensors import read_safetensors
from cones.concept.card import ConceptCard
from cones.interfaces.protocols import Backbone, Grounding, refuse_missing_sites

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8)
SENTENCES = {"sentences": 3, "places": 2, "unconditional": 3}
"""What a Concept of generation has besides, and their numbers of axes."""
KEYED = {"keys": 2, "key_labels": 1, "key_scale": 1}
"""What one of classification may have, all of it or nothing."""
AXES = {"text_embeds": 2, "owner": 1, "pooled": 2, "visual_tokens": 3, "bias": 1, **KEYED, **SENTENCES}
SEARCHED = "searched."
WEIGHTS_KEY = "cones_weights"


def check_tensors(where: Path, card: ConceptCard, tensors: Mapping[str, Tensor]) -> None:
    """`ConceptError` for tensors that are not those of a whole Concept with this card."""
    _check_names(where, card, tensors)
    _check_types(where, tensors)
    embeds, owner = tensors["text_embeds"], tensors["owner"]
    if not embeds.numel() or owner.shape != embeds.shape[:1]:
        shapes = f"text_embeds {tuple(embeds.shape)} and owner {tuple(owner.shape)}"
        raise ConceptError(f"{where} has {shapes}; they must be (T, d) and (T,)")
    if set(owner.tolist()) - {-1} != set(range(len(card.classes))):
        raise ConceptError(f"{where} has embeddings for other classes than the {len(card.classes)} its card names")
    if card.task == "classification" and len(owner) != len(card.classes):
        raise ConceptError(
            f"{where} has {len(owner)} embeddings for {len(card.classes)} classes; in classification each has one"
        )
    if card.task == "generation":
        _check_sentences(where, card, tensors)
    if card.task == "classification":
        _check_scoring(where, card, tensors)


def _check_names(where: Path, card: ConceptCard, tensors: Mapping[str, Tensor]) -> None:
    more = set(SENTENCES) if card.task == "generation" else set()
    missing = {"text_embeds", "owner"} | more
    if missing := missing - set(tensors):
        raise ConceptError(f"{where} lacks {', '.join(sorted(missing))}; it is not a whole Concept")
    known = {"text_embeds", "owner", "pooled"} | more
    allowed = known if card.task == "generation" else known | {"visual_tokens"}
    allowed |= {"bias", *KEYED} if card.task == "classification" else set()
    strange = sorted(name for name in tensors if name not in allowed and not name.startswith(SEARCHED))
    if strange:
        first = ", ".join(repr(name[:60]) for name in strange[:3])
        raise ConceptError(
            f"{where} holds {len(strange)} tensors that no Concept of {card.task} has, such as {first}; it has "
            f"{', '.join(sorted(known))} and what begins with {SEARCHED}"
        )


def _check_types(where: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        allowed = {"owner": WHOLE, "key_labels": WHOLE, "places": (torch.bool,)}.get(name, FLOATS)
        if tensor.dtype not in allowed:
            there = ", ".join(str(t).removeprefix("torch.") for t in allowed)
            raise ConceptError(f"{where} has {name[:60]} as {tensor.dtype}; it must be one of {there}")
        if name in AXES and tensor.ndim != AXES[name]:
            raise ConceptError(f"{where} has {name} {tuple(tensor.shape)}; it must have {AXES[name]} axes")
    if not all(t.isfinite().all() for t in tensors.values()):
        raise ConceptError(f"{where} holds numbers that are not finite; search the row again")


def _check_sentences(where: Path, card: ConceptCard, tensors: Mapping[str, Tensor]) -> None:
    embeds, sentences, places = (tensors[name] for name in ("text_embeds", "sentences", "places"))
    count, length, width = sentences.shape
    shapes = {"sentences": tuple(sentences.shape), "places": tuple(places.shape)}
    shapes |= {"unconditional": tuple(tensors["unconditional"].shape), "text_embeds": tuple(embeds.shape)}
    fits = places.shape == (count, length) and tensors["unconditional"].shape == (1, length, width)
    if not (fits and embeds.shape[1] == width and 1 <= count <= len(card.templates)):
        raise ConceptError(
            f"{where} has {', '.join(f'{name} {shape}' for name, shape in shapes.items())}; they must be (S, T, d), "
            f"(S, T), (1, T, d) and (n, d), with S at most the {len(card.templates)} templates"
        )
    if (places.sum(1) != len(embeds)).any():
        raise ConceptError(f"{where} has {len(embeds)} embeddings, and `places` for another number in its sentences")
    vectors = tensors.get("searched.vectors")
    if vectors is not None and (vectors.ndim != 2 or not vectors.numel()):
        raise ConceptError(f"{where} has searched.vectors {tuple(vectors.shape)}; they must be (n, d)")


def _check_scoring(where: Path, card: ConceptCard, tensors: Mapping[str, Tensor]) -> None:
    embeds, bias, there = tensors["text_embeds"], tensors.get("bias"), [name for name in KEYED if name in tensors]
    if bias is not None and (bias.shape != embeds.shape[:1] or there):
        raise ConceptError(f"{where} has a bias {tuple(bias.shape)}; it must be ({len(embeds)},), and without keys")
    if not there:
        return
    if len(there) < len(KEYED):
        raise ConceptError(f"{where} has {', '.join(there)}; of {', '.join(KEYED)} it must have all or none")
    keys, labels, scale = (tensors[name] for name in KEYED)
    if keys.shape[1:] != embeds.shape[1:] or labels.shape != keys.shape[:1] or scale.shape != (2,):
        shapes = ", ".join(f"{name} {tuple(tensors[name].shape)}" for name in KEYED)
        raise ConceptError(f"{where} has {shapes}; they must be (N, {embeds.shape[1]}), (N,) and (2,)")
    if not ((labels >= 0) & (labels < len(card.classes))).all():
        raise ConceptError(f"{where} has keys of other classes than the {len(card.classes)} its card names")


def check_fit(card: ConceptCard, tensors: Mapping[str, Tensor], backbone: Backbone) -> None:
    """`ConceptError` for tensors or a canvas that the opened base model cannot take."""
    embeds, vectors = tensors["text_embeds"], tensors.get("searched.vectors")
    if (visual := tensors.get("visual_tokens")) is not None:
        _check_visual(card, visual, backbone)
    texts = backbone.sites["text_embeds"]
    sizes = [("embeddings", embeds.shape[1], texts.width)]
    if vectors is not None:
        sizes += [("searched vectors", vectors.shape[1], backbone.sites["text_tokens"].width)]
    for what, width, wanted in sizes:
        if width != wanted:
            raise ConceptError(
                f"`{card.row}` has {what} {width} wide, and {card.base.name} takes {wanted}: they do not belong "
                "together; take the Concept file from where it was made, or search the row again"
            )
    if card.task == "generation" and tensors["sentences"].shape[1] > (texts.max_tokens or 0):
        length = tensors["sentences"].shape[1]
        raise ConceptError(f"`{card.row}` has sentences of {length} tokens; {card.base.name} takes {texts.max_tokens}")
    if card.canvas is not None and max(card.canvas) > (largest := cast(Grounding, backbone).largest_side):
        raise ConceptError(
            f"`{card.row}` has the canvas {list(card.canvas)}; pictures for {card.base.name} take at most "
            f"{largest} pixels a side: take the file from where it was made"
        )


def _check_visual(card: ConceptCard, tokens: Tensor, backbone: Backbone) -> None:
    refuse_missing_sites({"visual_tokens"}, backbone, f"`{card.row}`")
    site = backbone.sites["visual_tokens"]
    layers, _, width = tokens.shape
    if width != site.width or not 1 <= layers <= site.depth:
        raise ConceptError(
            f"`{card.row}` has visual tokens {width} wide, for {layers} layers; {card.base.name} takes them "
            f"{site.width} wide, for 1 to {site.depth}: they do not belong together"
        )


class MaskHeadSettings(BaseModel):
    """Of a mask head that a fine-tuning has given to a model without one."""

    model_config = ConfigDict(extra="forbid", strict=True)
    channels: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    convs: int = Field(ge=1, le=32)
    strides: Annotated[list[Annotated[int, Field(ge=1, le=1024)]], Field(min_length=1, max_length=16)]


class WeightsAbout(BaseModel):
    """What must be known to use fine-tuned weights."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    lora_scale: float | None = Field(None, gt=0, le=1000)
    mask_head: MaskHeadSettings | None = None


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Fine-tuned weights by their names, in single precision, and what must be known to use them.

    Raises `ConceptError` for a file that is not one of fine-tuned weights.
    """
    header, tensors = read_safetensors(path, ConceptError)
    try:
        about = WeightsAbout.model_validate_json(header.get(WEIGHTS_KEY, "missing"))
    except ValidationError as error:
        raise ConceptError(
            f"{path} has `{WEIGHTS_KEY}` in its header that this version cannot read: {first_mistake(error)}"
        ) from None
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS or not tensor.isfinite().all():
            raise ConceptError(f"{path} has {name[:80]!r} as {tensor.dtype} or not finite; weights are finite floats")
    return {name: t.float() for name, t in tensors.items()}, about.model_dump(exclude_none=True)
