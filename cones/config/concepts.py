"""Whether a Concept's card fits the settings that this version has, and whether params.yaml names its base model."""

import os
from pathlib import Path

from pydantic import ValidationError

from cones.common.errors import ConceptError, ConesError
from cones.concept.card import JOIN, ConceptCard, mistake_of, short
from cones.config.params import load_params
from cones.config.tables import BY_NAME, FINETUNE_KINDS, KINDS
from cones.interfaces.base import BaseModelCard
from cones.readers.volumes.settings import as_read


def check_card(where: Path | str, card: ConceptCard) -> None:
    """`ConceptError` for a card whose method, task or fine-tuning this version does not have, or not together."""
    checks = (_base_mistake, _method_mistake, _task_mistake, _finetune_mistake, _reading_mistake)
    if mistake := next(filter(None, (check(card) for check in checks)), None):
        raise ConceptError(f"{where} has a card that does not fit together: {mistake}; take the file from its maker")


def _base_mistake(card: ConceptCard) -> str | None:
    if card.base.kind not in KINDS:
        return f"base.kind: must be one of {', '.join(KINDS)}, got {short(card.base.kind)}"
    return None


def _method_mistake(card: ConceptCard) -> str | None:
    name = card.method.get("name")
    if name == JOIN:
        origins = card.method.get("of")
        well = isinstance(origins, list) and all(isinstance(o, dict) for o in origins) and card.task != "generation"
        return None if well else "method: `join` has `of`, a list of cards, and is for other tasks than generation"
    if not isinstance(name, str) or name not in BY_NAME:
        return f"method.name: must be one of {', '.join([*BY_NAME, JOIN])}, got {short(name)}"
    settings = BY_NAME[name]
    if KINDS[card.base.kind].family not in settings.families:
        return f"method.name: `{name}` is not defined on a `{card.base.kind}` backbone"
    try:  # settings that this version does not know are of another one
        settings.model_validate({k: v for k, v in card.method.items() if k in settings.model_fields})
    except ValidationError as error:
        return f"method.{mistake_of(error)}"
    return None


def _task_mistake(card: ConceptCard) -> str | None:
    tasks, detects = KINDS[card.base.kind].tasks, card.task in ("detection", "segmentation")
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
    family, kind = KINDS[card.base.kind].family, card.finetune.get("kind")
    kinds = [name for name, one in FINETUNE_KINDS.items() if family in one.families]
    if not isinstance(kind, str) or kind not in kinds:
        there = f"one of {', '.join(kinds)}" if kinds else "left out"
        return f"finetune.kind: on a `{card.base.kind}` backbone it must be {there}, got {short(kind)}"
    names = {field.alias or name for name, field in FINETUNE_KINDS[kind].model_fields.items()}
    try:
        FINETUNE_KINDS[kind].model_validate({k: v for k, v in card.finetune.items() if k in names})
    except ValidationError as error:
        return f"finetune.{mistake_of(error)}"
    return None


def _reading_mistake(card: ConceptCard) -> str | None:
    if card.reading is None:
        return None
    try:
        as_read(card.reading)
    except ValidationError as error:
        return f"reading.{mistake_of(error)}"
    return None


def is_named_here(base: BaseModelCard) -> bool:
    """Whether the params.yaml of the folder you stand in names a hub model at its revision."""
    if base.revision is None or not os.path.isfile("params.yaml"):
        return False
    try:
        tables = load_params().backbones.values()
    except (ConesError, OSError):
        return False
    models = (model for table in tables for _, model in table.models())
    return any((model.source, model.revision) == (base.source, base.revision) for model in models)
