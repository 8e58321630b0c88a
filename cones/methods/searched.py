"""The settings of methods, and which kinds of backbone each is defined on."""

from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from cones.common.settings import Count, Rate, Strict, Weight


class Noise(Strict):
    """How a step in generation draws its noise; all of it lowers the variance of the gradient."""

    copies: int = Field(1, ge=1, le=64)
    """Noises that each latent gets in a step; it costs as many times the step."""
    stratified: bool = False
    """Timesteps spread evenly over a step's latents instead of drawn one by one."""
    antithetic: bool = False
    """Half of a latent's copies are the other half with the opposite noise, at the same timesteps; `copies` is even."""

    @model_validator(mode="after")
    def _pairs(self) -> "Noise":
        if self.antithetic and self.copies % 2:
            raise PydanticCustomError("pairs", "`antithetic` pairs the copies of a latent: set `copies` to 2, 4, ...")
        return self


class Searched(Strict):
    """How a method's parameters are searched. One epoch sees each training picture once."""

    optimiser: Literal["adamw", "sgd"] = "adamw"
    lr: Rate = 1e-3
    weight_decay: Weight = 0.0
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of SGD."""
    epochs: Count = 200
    batch_size: Count = 32
    warmup_epochs: int = Field(1, ge=0, le=100_000_000)
    """Epochs at the constant rate `warmup_lr` before the cosine."""
    warmup_lr: Rate = 1e-5
    patience: Count | None = 20
    """Epochs without a better validation score before the search stops, counted from the first validation after the
    start at the earliest; None: never."""
    validate_every: Count = 1
    """Epochs between validations. One costs a pass over the validation pictures' features."""
    accumulate: int = Field(1, ge=1, le=64)
    """Parts that a batch is cut into, one after the other, to save memory; the gradient is that of the whole."""
    checkpoint_seconds: float = Field(10.0, ge=0)
    """A checkpoint is written at most this often."""


class Denoised(Searched):
    """What a search on the denoising loss of Stable Diffusion can be told besides."""

    noise: Noise | None = None
    gradient_checkpointing: bool = False
    """Compute the UNet's activations twice to keep fewer of them: less memory, more time."""
    sample_every: Count | None = None
    """Epochs between validation pictures, which the registry shows by step; None: none are made. On `sd` only."""
