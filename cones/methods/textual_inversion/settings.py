"""Textual inversion: the settings."""

from typing import Literal

from pydantic import Field

from cones.common.settings import Rate, Weight
from cones.methods.searched import Denoised


class TextualInversion(Denoised):
    """Textual inversion (Gal et al. 2022): new token vectors at the text encoder's input, in template sentences."""

    name: Literal["textual_inversion"]
    n_tokens: int = Field(1, ge=1, le=64)
    """Vectors that stand for the concept; they start from the first tokens of its class word."""
    lr: Rate = 5e-4
    """Published for a batch of one picture; its authors multiply it by the batch size."""
    weight_decay: Weight = 1e-2
    warmup_epochs: int = Field(0, ge=0, le=100_000_000)
