"""Visual Prompt Tuning (VPT), shallow and deep: the settings."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from cones.common.settings import Count, RateOrAuto, Weight
from cones.methods.searched import Searched

if TYPE_CHECKING:
    from torch import nn

    from cones.interfaces.protocols import Backbone
    from cones.methods.start import Start


class VPT(Searched):
    """What both kinds have: prompts among the tokens of a picture, beside texts that stay as they are.

    The defaults are VPT's number of prompts in CoOp's protocol.
    """

    families: ClassVar[frozenset[str]] = frozenset({"dual_encoder"})
    site: ClassVar[Literal["text_embeds", "text_tokens", "visual_tokens"]] = "visual_tokens"
    enters_image_encoder: ClassVar[bool] = True
    n_tokens: int = Field(16, ge=1, le=256)
    """Prompts beside a picture's own tokens, in each layer that takes some."""
    optimiser: Literal["adamw", "sgd"] = "sgd"
    lr: RateOrAuto = 0.002
    weight_decay: Weight = 5e-4
    epochs: Count = 200
    patience: Count | None = None

    @property
    def names_any_class(self) -> bool:
        return True


class VPTShallow(VPT):
    """VPT-shallow (Jia et al. 2022): prompts among a picture's tokens at the image encoder's first layer."""

    name: Literal["vpt_shallow"]

    def build(self, backbone: "Backbone", start: "Start") -> "nn.Module":
        from cones.methods.vpt.module import start_vpt

        return start_vpt(1, self.n_tokens, backbone, start)


class VPTDeep(VPT):
    """VPT-deep (Jia et al. 2022): prompts among a picture's tokens, anew at each layer of the image encoder."""

    name: Literal["vpt_deep"]
    depth: int | None = Field(None, ge=1, le=1000)
    """Layers that take prompts of their own, from the first on; None: all."""

    def build(self, backbone: "Backbone", start: "Start") -> "nn.Module":
        from cones.methods.visual import layers_of
        from cones.methods.vpt.module import start_vpt

        layers = layers_of(self.depth, backbone.sites["visual_tokens"], self.name)
        return start_vpt(layers, self.n_tokens, backbone, start)
