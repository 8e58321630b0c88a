"""What a base model is called, where it was found, and what it is by its hash."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

from cones.common.choices import REVISION
from cones.common.escaping import is_plain

DEEPEST, MOST_DIGITS, MOST_TEXT = 12, 20, 20_000
"""Of what a setting holds: levels of nesting, digits of a whole number, characters of a text."""


def _printable(text: str) -> str:
    return refuse_unplain(text)


def refuse_unplain(text: str, also: str = "") -> str:
    if not is_plain(text, also):
        raise PydanticCustomError("printable", "must have no control characters, nor what turns the direction of text")
    return text


Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 in hex."""


Text = Annotated[str, StringConstraints(min_length=1, max_length=MOST_TEXT), AfterValidator(_printable)]


Label = Annotated[str, StringConstraints(min_length=1, max_length=1000), AfterValidator(_printable)]


class Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class BaseModelCard(Checked):
    """The base model a Concept belongs to: a name and where it was found, and `sha256` of its files."""

    name: Label
    kind: Annotated[str, StringConstraints(pattern="^[a-z][a-z0-9_]{0,79}$")]
    """The name of its folder in `cones/backbones`."""
    source: Annotated[Text, Field(max_length=4096)]
    revision: Annotated[str, StringConstraints(pattern=REVISION)] | None
    sha256: Hash
