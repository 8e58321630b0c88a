"""Context Optimization (CoOp): the settings."""

from typing import Literal

from pydantic import Field

from cones.common.settings import Count, Rate, Weight, Words
from cones.methods.searched import Searched


class CoOp(Searched):
    """Context Optimization (Zhou et al. 2022): context tokens are searched through the text encoder.

    The defaults are its published settings.
    """

    name: Literal["coop"]
    n_ctx: int = Field(16, ge=1, le=64)
    """Context tokens; with `ctx_init` their number is that of its words."""
    ctx_init: Words | None = None
    """Words the context starts from, such as "a photo of a"; None: N(0, 0.02)."""
    class_token_position: Literal["end", "middle", "front"] = "end"
    class_specific: bool = False
    """A context of its own for each class (CoOp's CSC)."""
    optimiser: Literal["adamw", "sgd"] = "sgd"
    lr: Rate = 0.002
    weight_decay: Weight = 5e-4
    epochs: Count = 200
    """Published: 50 at 1 shot, 100 at 2 and 4, 200 at 8 and 16."""
    patience: Count | None = None
