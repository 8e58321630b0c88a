"""Prompt tuning for detection."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from cones.common.settings import RateOrAuto, Words
from cones.methods.searched import Searched

if TYPE_CHECKING:
    from torch import nn

    from cones.interfaces.protocols import Backbone
    from cones.methods.start import Start


class PromptTuning(Searched):
    """Prompt tuning for detection: context tokens before each class name are searched through the text encoder.

    It is CoOp's idea (Zhou et al. 2022) on the caption that GLIP reads.
    """

    families: ClassVar[frozenset[str]] = frozenset({"grounding"})
    site: ClassVar[Literal["text_embeds", "text_tokens"]] = "text_tokens"
    name: Literal["prompt_tuning"]
    n_ctx: int = Field(4, ge=1, le=64)
    """Context tokens a class name gets."""
    ctx_init: Words | None = None
    """Words the context starts from; None: N(0, 0.02)."""
    class_specific: bool = False
    """A context of its own for each class."""
    lr: RateOrAuto = 0.002

    def build(self, backbone: "Backbone", start: "Start") -> "nn.Module":
        from cones.methods.context import ContextTokens, start_context

        return ContextTokens(start_context(self, backbone, start))
