"""Concept Embedding Search (ConES): the settings."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from cones.common.escaping import shortened
from cones.common.settings import OnlyFor, RateOrAuto
from cones.methods.searched import Denoised

if TYPE_CHECKING:
    from torch import nn

    from cones.interfaces.protocols import Backbone
    from cones.methods.start import Start

INITS = {
    "dual_encoder": ("text", "image", "blend", "random"),
    "grounding": ("text", "random"),
    "diffusion": ("text", "word", "image", "random"),
}
"""What a search can start from, by the family of the base model."""


def _own_all_or_last(value: Any) -> Any:
    """Checked here, as a union would report each of its members at a path that the file does not have."""
    last = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1000
    if value not in ("own", "all") and not last:
        raise PydanticCustomError("rows", "must be own, all, or how many of the last")
    return value


Rows = Annotated[str | int, BeforeValidator(_own_all_or_last)]


class Cones(Denoised):
    """Concept Embedding Search (arXiv 2305.18993): the text encoder's output itself is searched."""

    families: ClassVar[frozenset[str]] = frozenset(INITS)
    name: Literal["cones"]
    init: Literal["text", "word", "image", "blend", "random"] = "text"
    """Start from the text encoder's output for the names (`word` says the same of the class word of `sd`), for CLIP
    also from the classes' mean image features or a blend of both chosen on validation, for `sd` from what the pictures'
    mean CLIP feature predicts of the encoder's output, or from noise."""
    lr: RateOrAuto = 3e-3
    n_tokens: int | None = Field(None, ge=1, le=64)
    """Tokens a class; None: as many as its name has. CLIP's text encoder hands over one."""
    rows: Annotated[Rows, OnlyFor("diffusion")] = "own"
    """On `sd`, which rows of the encoder's output are searched: the concept's own in every template, all of a sentence,
    or the last so many, as HiPer does (Han et al. 2023)."""

    @property
    def needs_validation(self) -> str | None:
        if self.init == "blend":
            return "its start is blended by them; take another `init` than blend"
        return super().needs_validation

    def build(self, backbone: "Backbone", start: "Start") -> "nn.Module":
        from cones.methods.cones.start import build

        return build(self, backbone, start)

    @classmethod
    def mistake(cls, given: Mapping[str, Any], family: str, kind: str) -> str | None:
        init, tokens = str(given.get("init", "text")), given.get("n_tokens")
        if family == "dual_encoder" and tokens not in (None, 1):
            return (
                f"`cones` with n_tokens {shortened(tokens)} is not defined on a `{kind}` backbone: its text encoder "
                "hands over one vector a class; set n_tokens to 1 or leave it out"
            )
        if family == "diffusion" and tokens is not None and given.get("rows", "own") != "own":
            came = f"n_tokens {shortened(tokens)} and rows {shortened(given['rows'])}"
            return f"`cones` with {came}: n_tokens is for `rows: own`; leave one out"
        if init in {one for of in INITS.values() for one in of} and init not in INITS[family]:
            there = ", ".join(INITS[family])
            return f"`cones` with init {init} is not defined on a `{kind}` backbone; those that are: {there}"
        return None
