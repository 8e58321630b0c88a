"""What the settings of all rooms are made of: the strict base class and the bounded types."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WrapValidator
from pydantic_core import PydanticCustomError

from cones.common.escaping import is_plain


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class ReadBy:
    """Marks a field, in `Annotated`, that some stages read and no other."""

    stages: tuple[str, ...]

    def __init__(self, *stages: str) -> None:
        object.__setattr__(self, "stages", stages)


@dataclass(frozen=True)
class OnlyFor:
    """Marks a field, in `Annotated`, that means something on some families of base models and on no other."""

    families: tuple[str, ...]

    def __init__(self, *families: str) -> None:
        object.__setattr__(self, "families", families)


def families_of(settings: type[BaseModel], name: str) -> tuple[str, ...] | None:
    """The families that a field is for; None: all."""
    field = settings.model_fields[name]
    return next((mark.families for mark in field.metadata if isinstance(mark, OnlyFor)), None)


def read_by(settings: type[BaseModel], stage: str) -> set[str]:
    """The fields of settings that a stage reads."""
    marks = {
        name: [m for m in field.metadata if isinstance(m, ReadBy)] for name, field in settings.model_fields.items()
    }
    return {name for name, of in marks.items() if all(stage in mark.stages for mark in of)}


def _plain(text: str) -> str:
    """As a concept's card has it: it is refused before anything is searched."""
    if not is_plain(text):
        raise PydanticCustomError(
            "plain", "must be plain text, without line breaks, control characters and what turns the direction of text"
        )
    return text


def _on_this_machine(text: str) -> str:
    """DVC would ask an address for its content."""
    if "://" in text:
        raise PydanticCustomError("on_this_machine", "must be a folder of this machine, and not an address")
    return text


Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""As large as the generators of NumPy and torch both take."""


Count = Annotated[int, Field(ge=1, le=100_000_000)]


Processes = Annotated[int, Field(ge=1, le=64, exclude_if=lambda count: count == 1)]
"""How many processes share the pictures of each step of a row, on a GPU each where there are any; `batch_size` is that
of each of them. One is not written down, so that it makes nothing differ from what was made before."""


Words = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_plain)]
"""A name or sentence of people; text encoders read less than a hundred tokens of it."""


Within = Annotated[str, Field(max_length=1000), AfterValidator(_plain)]
"""A path from another one; empty: that one itself."""


PathName = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_plain)]


Source = Annotated[PathName, AfterValidator(_on_this_machine)]


def each_once(names: list[Any]) -> list[Any]:
    if len(set(names)) < len(names):
        raise PydanticCustomError("each_once", "must name each class once")
    return names


def _name(text: str) -> str:
    """Names become folders, stages and settings of DVC, which takes a dot for the step to a setting within."""
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]{0,79}", text):
        raise PydanticCustomError("name", NAMES)
    return text


NAMES = "cannot be a name: letters, digits, `_` and `-`, a letter or digit first, at most 80"


Name = Annotated[str, AfterValidator(_name)]


Rate = Annotated[float, Field(gt=0, le=1e38)]
"""The largest numbers of float32 are 3.4e38."""


def _rate_or_auto(value: Any, check: Callable[[Any], Any]) -> Any:
    """Checked here, as a union would report each of its members at a path that the file does not have."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1e38
    if value != "auto" and not number:
        raise PydanticCustomError("rate", "must be auto, or a number above 0 and at most 1e38")
    return check(value)


RateOrAuto = Annotated[float | Literal["auto"], WrapValidator(_rate_or_auto)]
"""A learning rate, or `auto`: the validation pictures choose it."""


Weight = Annotated[float, Field(ge=0, le=1e38)]
