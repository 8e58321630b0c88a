"""The card of a Concept file: everything about it that is not a tensor. Reading one needs no torch."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, ValidationError
from pydantic_core import PydanticCustomError

from cones.common.errors import ConceptError
from cones.common.escaping import is_plain
from cones.common.settings import Processes
from cones.interfaces.base import (
    DEEPEST,
    MOST_DIGITS,
    MOST_TEXT,
    BaseModelCard,
    Checked,
    Hash,
    Label,
    Text,
    _printable,
    refuse_unplain,
)

CARD_KEY = "cones_concept"
JOIN = "join"
"""The method of a joined Concept, whose setting `of` lists the cards' main facts of those it was joined from."""
MOST_BYTES = 16 << 20
"""Of a card; a thousand classes take a tenth of a megabyte."""
MOST_SIDE = 4096
"""Pixels of a canvas's side; GLIP's published scale makes 1344."""


def _sayable(text: str) -> str:
    return refuse_unplain(text, also="\n\t")


def _each_once(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise PydanticCustomError("each_once", "must name each class once")
    return names


def _plain(value: Any) -> Any:
    """Settings may be of another version, so their names are free; what they hold is finite, flat and short."""
    _refuse_wild(value, DEEPEST)
    return value


def _refuse_wild(value: Any, deepest: int) -> None:
    if deepest < 0:
        raise PydanticCustomError("deep", "must be nested at most {most} deep", {"most": DEEPEST})
    match value:
        case str():
            if len(value) > MOST_TEXT:
                raise PydanticCustomError("long", "must have texts of at most {most} characters", {"most": MOST_TEXT})
            _sayable(value)
        case int() if abs(value) >= 10**MOST_DIGITS:
            raise PydanticCustomError("digits", "must have numbers of at most {most} digits", {"most": MOST_DIGITS})
        case float() if not math.isfinite(value):
            raise PydanticCustomError("finite", "must have finite numbers")
        case Mapping():
            for key, one in value.items():
                _printable(str(key))
                _refuse_wild(one, deepest - 1)
        case list() | tuple():
            for one in value:
                _refuse_wild(one, deepest - 1)


Said = Annotated[str, StringConstraints(min_length=1, max_length=4000), AfterValidator(_sayable)]
"""A part of a sentence, which may have several lines in params.yaml."""
Plain = Annotated[dict[str, Any], Field(max_length=1000), AfterValidator(_plain)]
Side = Annotated[int, Field(ge=1, le=MOST_SIDE)]


class ConceptCard(Checked):
    """Everything about a Concept that is not a tensor; it stands as JSON in the file's header."""

    format: Literal[1] = 1
    concept: Text
    row: Text
    task: Literal["classification", "detection", "segmentation", "generation"]
    method: Plain
    site: Literal["text_embeds", "text_tokens", "visual_tokens"]
    """Where the searched vectors stand; `text_embeds` is filled in any case. In generation, all that the text encoder
    hands over for `templates` is there as `sentences` (S, T, d), with the concept's `places` (S, T) in it, and for no
    text as `unconditional` (1, T, d): so no text encoder is needed to sample from them."""
    classes: Annotated[list[Label], Field(min_length=1), AfterValidator(_each_once)]
    """The labels, in the order of the embeddings' owners."""
    names: list[Said]
    """What each class was called in sentences."""
    templates: Annotated[list[Said], Field(min_length=1, max_length=10_000)]
    base: BaseModelCard
    preprocessing: Plain
    score_threshold: float | None = Field(None, ge=0, le=1)
    """Boxes below it are not predicted, unless asked for."""
    canvas: tuple[Side, Side] | None = None
    """Height and width that pictures were padded to; a larger one gets a larger one."""
    guidance: float | None = Field(None, ge=1, le=50)
    """Scale of classifier-free guidance that pictures are sampled with, unless asked for another."""
    sampling_steps: int | None = Field(None, ge=1, le=1000)
    reading: Plain | None = None
    """How its pictures were cut from volumes (the settings of `kind: volumes`); None for pictures."""
    finetune: Plain | None = None
    """The settings of the second step, if there was one."""
    processes: Processes = 1
    """How many shared the steps of the search; a second step says that itself."""
    weights_sha256: Hash | None = None
    """Hash of the weights file beside the Concept, after a fine-tuning."""
    needs_text_encoder: bool = False
    """Whether each picture has a text of its own, so that predicting runs the text encoder for each; `text_embeds` are
    then those of the context alone."""
    shots: int | None = Field(ge=0, le=10**9)
    seed: int = Field(ge=0, lt=10**MOST_DIGITS)
    split_hash: Hash
    trained_parameters: int = Field(ge=0, lt=10**15)
    val: Annotated[dict[Label, float], Field(max_length=10_000)]
    versions: Annotated[dict[Label, Text], Field(max_length=100)]
    tensors_sha256: Hash | None = None
    """Hash of the tensors, so that a damaged file is noticed; `Concept.save` fills it in."""


def read_card(text: str, where: Path | str) -> ConceptCard:
    """A card from its JSON, each field checked by itself; `where` is the file that it stands in.

    `ConceptError` for one that is not sound.
    """
    if len(text) > MOST_BYTES:
        raise ConceptError(f"{where} has a card of {len(text) >> 20} MB; a sound one has at most {MOST_BYTES >> 20}")
    try:
        card = ConceptCard.model_validate_json(text, strict=True)
        json.loads(text, object_pairs_hook=_unique)
    except ValidationError as error:
        raise ConceptError(f"{where} has a card this version cannot read: {mistake_of(error)}") from None
    except ValueError as error:
        raise ConceptError(f"{where} has a card this version cannot read: {error}") from None
    return card


def mistake_of(error: ValidationError) -> str:
    """Where a card is first not as it should be, how, and what came; a newer format is told before all else."""
    mistakes = error.errors(include_url=False)
    first = next((e for e in mistakes if e["loc"] == ("format",)), mistakes[0])
    where, came = ".".join(map(str, first["loc"])), first["input"]
    if first["loc"] == ("format",) and isinstance(came, int) and came > 1:
        return f"format: {short(came)}, which a newer version of cones writes and this one does not: install that one"
    got = "" if first["type"] in ("missing", "extra_forbidden", "json_invalid") else f", got {short(came)}"
    return f"{_shown(where)}: {first['msg']}{got}"


def _shown(text: str) -> str:
    return "".join(c if is_plain(c) else "?" for c in (text if len(text) <= 80 else f"{text[:77]}..."))


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"`{_shown(key)}` stands in it twice")
        found[key] = value
    return found


def short(value: Any) -> str:
    if isinstance(value, int) and abs(value) >= 10**MOST_DIGITS:
        return f"a number of more than {MOST_DIGITS} digits"  # Python writes no number of many thousands
    return _shown(repr(value[:100] if isinstance(value, str | list) else value))
