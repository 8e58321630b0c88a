"""Context Optimization (CoOp)."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from cones.common.settings import Count, RateOrAuto, Weight, Words
from cones.methods.searched import Searched

if TYPE_CHECKING:
    from torch import nn

    from cones.interfaces.protocols import Backbone
    from cones.interfaces.texts import Slot
    from cones.methods.start import Start

SLOTS: "dict[str, Slot]" = {"end": "before", "middle": "around", "front": "after"}
"""Where context tokens stand, by the place of the class name."""


class CoOp(Searched):
    """Context Optimization (Zhou et al. 2022): context tokens are searched through the text encoder.

    The defaults are its published settings.
    """

    families: ClassVar[frozenset[str]] = frozenset({"dual_encoder"})
    site: ClassVar[Literal["text_embeds", "text_tokens"]] = "text_tokens"
    name: Literal["coop"]
    n_ctx: int = Field(16, ge=1, le=64)
    """Context tokens; with `ctx_init` their number is that of its words."""
    ctx_init: Words | None = None
    """Words the context starts from, such as "a photo of a"; None: N(0, 0.02)."""
    class_token_position: Literal["end", "middle", "front"] = "end"
    class_specific: bool = False
    """A context of its own for each class (CoOp's CSC)."""
    optimiser: Literal["adamw", "sgd"] = "sgd"
    lr: RateOrAuto = 0.002
    weight_decay: Weight = 5e-4
    epochs: Count = 200
    """Published: 50 at 1 shot, 100 at 2 and 4, 200 at 8 and 16."""
    patience: Count | None = None

    @property
    def names_any_class(self) -> bool:
        return not self.class_specific

    def at_shots(self, shots: int) -> "CoOp":
        if "epochs" in self.model_fields_set:
            return self
        return self.model_copy(update={"epochs": 50 if shots == 1 else 100 if shots <= 4 else 200})

    def build(self, backbone: "Backbone", start: "Start") -> "nn.Module":
        from cones.methods.context import ContextTokens, start_context

        return ContextTokens(start_context(self, backbone, start), SLOTS[self.class_token_position])
