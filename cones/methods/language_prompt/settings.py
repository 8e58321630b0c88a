"""GLIP's own prompt tuning: the settings."""

from typing import TYPE_CHECKING, ClassVar, Literal

from cones.common.settings import RateOrAuto, Weight
from cones.methods.searched import Searched

if TYPE_CHECKING:
    from torch import nn

    from cones.interfaces.protocols import Backbone
    from cones.methods.start import Start


class LanguagePrompt(Searched):
    """GLIP's own prompt tuning (Li et al. 2022, language_prompt_v2): a table added to the text encoder's output."""

    families: ClassVar[frozenset[str]] = frozenset({"grounding"})
    name: Literal["language_prompt"]
    lr: RateOrAuto = 0.05
    weight_decay: Weight = 0.25

    def build(self, backbone: "Backbone", start: "Start") -> "nn.Module":
        from cones.methods.language_prompt.module import LanguagePrompt as Module

        return Module(start.text)
