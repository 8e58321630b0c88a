"""What the settings of all methods share."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny, model_validator
from pydantic_core import PydanticCustomError

from cones.common.settings import Count, Name, OnlyFor, Processes, Rate, RateOrAuto, Strict, Weight

if TYPE_CHECKING:
    from torch import nn

    from cones.interfaces.protocols import Backbone
    from cones.methods.start import Start


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


class Method(Strict):
    """What a row searches with, and on which families of base models that is defined."""

    families: ClassVar[frozenset[str]]
    site: ClassVar[Literal["text_embeds", "text_tokens", "visual_tokens"]] = "text_embeds"
    """Where what is searched stands: at the text encoder's output, at its input, or among the tokens of a picture."""
    enters_image_encoder: ClassVar[bool] = False
    """Whether it gives visual tokens, so that pictures are encoded anew at each step."""
    reads_pictures: ClassVar[bool] = False
    """Whether its text depends on what each picture shows, so that it is made anew for each batch."""
    name: str = ""

    def at_shots(self, shots: int) -> "Method":
        """The method as it is published for a number of training pictures a class."""
        return self

    @property
    def names_any_class(self) -> bool:
        """Whether what it searches goes with any class name: its prompts stand before the text encoder and are shared
        by all classes, or the text stays what the encoder says of the names."""
        return False

    @property
    def needs_validation(self) -> str | None:
        """Why it cannot do without validation pictures, and what to do instead; None: it can, its last step kept."""
        return None

    @property
    def own_names(self) -> Mapping[str, str]:
        """What classes are called in this row alone."""
        return {}

    def on_classes(self, attributes: Mapping[str, str]) -> "Method":
        """The method as it is on a concept whose classes are described by `attributes`."""
        return self

    @classmethod
    def summary(cls) -> str:
        """What it does, in the first line of its docstring."""
        return (cls.__doc__ or "").strip().split("\n")[0]

    @classmethod
    def sites(cls) -> frozenset[str]:
        """The sites of a backbone that its prompts go to."""
        return frozenset({cls.site, *(["visual_tokens"] if cls.enters_image_encoder else [])})

    def build(self, backbone: "Backbone", start: "Start") -> "nn.Module":
        """The module whose parameters are exactly what is searched, as it stands before the search."""
        raise NotImplementedError

    @classmethod
    def mistake(cls, given: Mapping[str, Any], family: str, kind: str) -> str | None:
        """Why settings, as they stand in the file, mean nothing together on a kind of base model of a family."""
        return None


class Row(Strict):
    """One row: a method applied to a concept."""

    concept: Name
    method: SerializeAsAny[Method]
    processes: Processes = 1
    """For a method that enters the image encoder: any other searches on kept features, and gains nothing."""


class Searched(Method):
    """How a method's parameters are searched. One epoch sees each training picture once."""

    optimiser: Literal["adamw", "sgd"] = "adamw"
    lr: RateOrAuto = 1e-3
    """`auto`: one of seven around the default, by successive halving on validation; see cones/search/rates.py."""
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

    @property
    def needs_validation(self) -> str | None:
        return "its learning rate is chosen on them; set `lr`" if self.lr == "auto" else None

    @property
    def rate(self) -> float:
        """The learning rate of a search; of `auto` the one in the middle of those that are tried."""
        return float(type(self).model_fields["lr"].default if self.lr == "auto" else self.lr)


class Denoised(Searched):
    """What a search on the denoising loss of Stable Diffusion can be told besides."""

    noise: Annotated[Noise | None, OnlyFor("diffusion")] = None
    gradient_checkpointing: Annotated[bool, OnlyFor("diffusion")] = False
    """Compute the UNet's activations twice to keep fewer of them: less memory, more time."""
    sample_every: Annotated[Count | None, OnlyFor("diffusion")] = None
    """Epochs between validation pictures, which the registry shows by step; None: none are made."""
