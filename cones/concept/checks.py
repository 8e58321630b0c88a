"""What a Concept must be: its card by the settings there are, its tensors and weights by card and base model."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from cones.common.errors import ConceptError, ConesError
from cones.common.messages import first_mistake
from cones.common.tensors import read_safetensors
from cones.concept.card import JOIN, ConceptCard, mistake_of, short
from cones.config.params import load_params
from cones.config.tables import BACKBONE_TASKS, METHOD_BACKBONES, MethodSettings
from cones.finetuning.settings import FINETUNES, FinetuneConfig
from cones.interfaces.base import BaseModelCard

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8)
SENTENCES = {"sentences": 3, "places": 2, "unconditional": 3}
"""What a Concept of generation has besides, and their numbers of axes."""
AXES = {"text_embeds": 2, "owner": 1, "pooled": 2, **SENTENCES}
SEARCHED = "searched."
WEIGHTS_KEY = "cones_weights"
SETTINGS = {get_args(kind.model_fields["name"].annotation)[0]: kind for kind in get_args(MethodSettings)}
"""What there is to set, by the name of a method."""


def check_card(where: Path | str, card: ConceptCard) -> None:
    """`ConceptError` for a card whose method, task or fine-tuning this version does not have, or not together."""
    if mistake := _method_mistake(card) or _task_mistake(card) or _finetune_mistake(card):
        raise ConceptError(f"{where} has a card that does not fit together: {mistake}; take the file from its maker")


def _method_mistake(card: ConceptCard) -> str | None:
    name = card.method.get("name")
    if name == JOIN:
        origins = card.method.get("of")
        well = isinstance(origins, list) and all(isinstance(o, dict) for o in origins) and card.task != "generation"
        return None if well else "method: `join` has `of`, a list of cards, and is for other tasks than generation"
    if not isinstance(name, str) or name not in METHOD_BACKBONES:
        return f"method.name: must be one of {', '.join([*METHOD_BACKBONES, JOIN])}, got {short(name)}"
    if card.base.kind not in METHOD_BACKBONES[name]:
        return f"method.name: `{name}` is not defined on a `{card.base.kind}` backbone"
    try:  # settings that this version does not know are of another one
        SETTINGS[name].model_validate({k: v for k, v in card.method.items() if k in SETTINGS[name].model_fields})
    except ValidationError as error:
        return f"method.{mistake_of(error)}"
    return None


def _task_mistake(card: ConceptCard) -> str | None:
    tasks, detects = BACKBONE_TASKS[card.base.kind], card.task in ("detection", "segmentation")
    if card.task not in tasks:
        return f"task: a `{card.base.kind}` backbone does {' and '.join(sorted(tasks))}, got {card.task}"
    if len(card.names) != len(card.classes):
        return f"names: must be one a class, got {len(card.names)} for {len(card.classes)} classes"
    if not detects and (card.score_threshold, card.canvas) != (None, None):
        return f"score_threshold and canvas are for detection and segmentation; the task is {card.task}"
    if card.task == "generation":
        if None in (card.guidance, card.sampling_steps):
            return "guidance and sampling_steps must be given where the task is generation"
        return None if len(card.classes) == 1 else f"classes: generation has one, got {len(card.classes)}"
    if (card.guidance, card.sampling_steps) != (None, None):
        return f"guidance and sampling_steps are for generation; the task is {card.task}"
    return None


def _finetune_mistake(card: ConceptCard) -> str | None:
    if (card.finetune is None) != (card.weights_sha256 is None):
        return "finetune and weights_sha256 go together; the card has one of them"
    if card.finetune is None:
        return None
    kinds, kind = FINETUNES.get(card.base.kind, ()), card.finetune.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        there = f"one of {', '.join(kinds)}" if kinds else "left out"
        return f"finetune.kind: on a `{card.base.kind}` backbone it must be {there}, got {short(kind)}"
    names = {field.alias or name for name, field in FinetuneConfig.model_fields.items()}
    try:
        FinetuneConfig.model_validate({k: v for k, v in card.finetune.items() if k in names})
    except ValidationError as error:
        return f"finetune.{mistake_of(error)}"
    return None


def is_named_here(base: BaseModelCard) -> bool:
    """Whether the params.yaml of the folder you stand in names a hub model at its revision."""
    if base.revision is None or not os.path.isfile("params.yaml"):
        return False
    try:
        tables = load_params().backbones.values()
    except (ConesError, OSError):
        return False
    models = [model for table in tables for model in (table, table.clip, table.judge) if model is not None]
    return any((model.source, model.revision) == (base.source, base.revision) for model in models)


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
    if card.base.kind == "clip" and len(owner) != len(card.classes):
        raise ConceptError(f"{where} has {len(owner)} embeddings for {len(card.classes)} classes; on CLIP each has one")
    if card.task == "generation":
        _check_sentences(where, card, tensors)


def _check_names(where: Path, card: ConceptCard, tensors: Mapping[str, Tensor]) -> None:
    more = set(SENTENCES) if card.task == "generation" else set()
    missing = {"text_embeds", "owner"} | more
    if missing := missing - set(tensors):
        raise ConceptError(f"{where} lacks {', '.join(sorted(missing))}; it is not a whole Concept")
    known = {"text_embeds", "owner", "pooled"} | more
    strange = sorted(name for name in tensors if name not in known and not name.startswith(SEARCHED))
    if strange:
        first = ", ".join(repr(name[:60]) for name in strange[:3])
        raise ConceptError(
            f"{where} holds {len(strange)} tensors that no Concept of {card.task} has, such as {first}; it has "
            f"{', '.join(sorted(known))} and what begins with {SEARCHED}"
        )


def _check_types(where: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        allowed = {"owner": WHOLE, "places": (torch.bool,)}.get(name, FLOATS)
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


def check_fit(card: ConceptCard, tensors: Mapping[str, Tensor], backbone: Any) -> None:
    """`ConceptError` for tensors or a canvas that the opened base model cannot take."""
    embeds, vectors = tensors["text_embeds"], tensors.get("searched.vectors")
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
    if card.task == "generation" and tensors["sentences"].shape[1] > texts.max_tokens:
        length = tensors["sentences"].shape[1]
        raise ConceptError(f"`{card.row}` has sentences of {length} tokens; {card.base.name} takes {texts.max_tokens}")
    if card.canvas is not None and max(card.canvas) > backbone.largest_side:
        raise ConceptError(
            f"`{card.row}` has the canvas {list(card.canvas)}; pictures for {card.base.name} take at most "
            f"{backbone.largest_side} pixels a side: take the file from where it was made"
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
