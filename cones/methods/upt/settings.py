"""Unified Prompt Tuning (UPT): the settings."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from cones.common.escaping import shortened
from cones.common.settings import Count, RateOrAuto, Weight
from cones.methods.searched import Searched

if TYPE_CHECKING:
    from torch import nn

    from cones.interfaces.protocols import Backbone
    from cones.methods.start import Start


class UPT(Searched):
    """Unified Prompt Tuning (Zang et al. 2022, arXiv 2210.07225): one small network makes text and visual prompts.

    The defaults are the paper's settings. Published averages move more with the epochs than with what makes the
    prompts, so a figure of it is of a variant at a number of epochs.
    """

    families: ClassVar[frozenset[str]] = frozenset({"dual_encoder"})
    site: ClassVar[Literal["text_embeds", "text_tokens", "visual_tokens"]] = "text_tokens"
    enters_image_encoder: ClassVar[bool] = True
    name: Literal["upt"]
    variant: Literal["paper", "mvlpt", "released"] = "paper"
    """What goes by this name: the paper's own; the re-implementation in MVLPT (Shen et al. 2022); the code that its
    author released in 2025. In the last two the attention sees each prompt alone."""
    n_ctx: int = Field(4, ge=1, le=64)
    """Prompts for the text, and as many for each layer of the image encoder that takes some."""
    transform: Literal["attention", "mlp", "none"] | None = None
    """What makes the prompts of both sites: a self-attention layer over all of them, the same without attention, or
    nothing; None: the variant's own, which is attention."""
    shared: bool | None = None
    """Whether the prompts of both sites come from one table, or each site has one of its own; with `transform: none`
    the same prompts stand in both. None: the variant's own, which is one table, in MVLPT two."""
    depth: int | None = Field(None, ge=1, le=1000)
    """Layers of the image encoder that take prompts of their own; None: the variant's own, which is all, in the
    released code the first."""
    class_token_position: Literal["end", "middle", "front"] | None = None
    """Where the class name stands; None: the variant's own, which is the middle, in the released code the end."""
    optimiser: Literal["adamw", "sgd"] = "sgd"
    lr: RateOrAuto = 0.002
    weight_decay: Weight = 5e-4
    epochs: Count = 200
    patience: Count | None = None

    @property
    def names_any_class(self) -> bool:
        return True

    def build(self, backbone: "Backbone", start: "Start") -> "nn.Module":
        from cones.methods.upt.start import start_upt

        return start_upt(self, backbone, start)

    @classmethod
    def mistake(cls, given: Mapping[str, Any], family: str, kind: str) -> str | None:
        variant = given.get("variant")
        if variant not in ("mvlpt", "released"):
            return None
        fixed = [name for name in ("transform", "shared") if given.get(name) is not None]
        if variant == "released" and given.get("depth") not in (None, 1):
            fixed.append("depth")
        if fixed:
            return (
                f"`upt` with variant {variant} is as that code has it, and {fixed[0]} {shortened(given[fixed[0]])} is "
                "for `variant: paper`; leave one out"
            )
        return None
