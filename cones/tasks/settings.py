"""What the settings of all tasks share."""

import re
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from cones.common.settings import Count, Name, Seed, Strict, Words


def _one_place(text: str) -> str:
    if not re.fullmatch(r"[^{}]*\{\}[^{}]*", text):
        raise PydanticCustomError(
            "one_place", "must be a sentence with {place} once, where the words go", {"place": "{}"}
        )
    return text


Template = Annotated[Words, AfterValidator(_one_place)]


class BaseConcept(Strict):
    """What is to be told apart or found, by which base model, from how many pictures."""

    backbone: Name
    data: Name
    val_shots: Count | None = None
    """Validation pictures a class, the same for every row; None: as many as `shots`, or all there are if fewer."""
    seed: Seed = 0
    names: dict[Words, Words] = {}
    """What to call a class in a sentence, where its folder's name is not how one would say it."""
