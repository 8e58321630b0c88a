"""Concept Embedding Search (ConES): the settings."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from cones.common.settings import Rate
from cones.methods.searched import Denoised


def _own_all_or_last(value: Any) -> Any:
    """Checked here, as a union would report each of its members at a path that the file does not have."""
    last = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1000
    if value not in ("own", "all") and not last:
        raise PydanticCustomError("rows", "must be own, all, or how many of the last")
    return value


Rows = Annotated[str | int, BeforeValidator(_own_all_or_last)]


class Cones(Denoised):
    """Concept Embedding Search (arXiv 2305.18993): the text encoder's output itself is searched."""

    name: Literal["cones"]
    init: Literal["text", "word", "image", "blend", "random"] = "text"
    """Start from the text encoder's output for the names (`word` says the same of the class word of `sd`), for CLIP
    also from the classes' mean image features or a blend of both chosen on validation, for `sd` from what the pictures'
    mean CLIP feature predicts of the encoder's output, or from noise."""
    lr: Rate = 3e-3
    n_tokens: int | None = Field(None, ge=1, le=64)
    """Tokens a class; None: as many as its name has. CLIP's text encoder hands over one."""
    rows: Rows = "own"
    """On `sd`, which rows of the encoder's output are searched: the concept's own in every template, all of a sentence,
    or the last so many, as HiPer does (Han et al. 2023)."""
