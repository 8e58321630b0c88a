"""GLIP's own prompt tuning: the settings."""

from typing import Literal

from cones.common.settings import Rate, Weight
from cones.methods.searched import Searched


class LanguagePrompt(Searched):
    """GLIP's own prompt tuning (Li et al. 2022, language_prompt_v2): a table added to the text encoder's output."""

    name: Literal["language_prompt"]
    lr: Rate = 0.05
    weight_decay: Weight = 0.25
