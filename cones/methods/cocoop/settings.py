"""Conditional Context Optimization (CoCoOp): the settings."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from cones.common.settings import Count, RateOrAuto, Weight, Words
from cones.methods.searched import Searched

if TYPE_CHECKING:
    from torch import nn

    from cones.interfaces.protocols import Backbone
    from cones.methods.start import Start


class CoCoOp(Searched):
    """Conditional Context Optimization (Zhou et al. 2022b): context tokens that each picture's own feature moves.

    The defaults are its published settings. The text encoder runs for each picture and class, in a search and in every
    prediction after it.
    """

    families: ClassVar[frozenset[str]] = frozenset({"dual_encoder"})
    site: ClassVar[Literal["text_embeds", "text_tokens", "visual_tokens"]] = "text_tokens"
    reads_pictures: ClassVar[bool] = True
    name: Literal["cocoop"]
    n_ctx: int = Field(4, ge=1, le=64)
    """Context tokens; with `ctx_init` their number is that of its words."""
    ctx_init: Words | None = "a photo of a"
    """Words the context starts from; None: N(0, 0.02)."""
    optimiser: Literal["adamw", "sgd"] = "sgd"
    lr: RateOrAuto = 0.002
    weight_decay: Weight = 5e-4
    epochs: Count = 10
    batch_size: Count = 1
    """Each picture of a batch brings as many sentences as there are classes."""
    patience: Count | None = None

    @property
    def class_specific(self) -> bool:
        return False

    @property
    def names_any_class(self) -> bool:
        return True

    def build(self, backbone: "Backbone", start: "Start") -> "nn.Module":
        from cones.interfaces.randomness import seeded
        from cones.methods.cocoop.module import CoCoOp as Module
        from cones.methods.context import start_context

        with seeded(start.seed):
            return Module(start_context(self, backbone, start), backbone.sites["text_embeds"].width)
