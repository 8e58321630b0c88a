"""The settings of methods, and which kinds of backbone each is defined on."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from cones.data.settings import Count, Strict, Words

Rate = Annotated[float, Field(gt=0, le=1e38)]
"""The largest numbers of float32 are 3.4e38."""
Weight = Annotated[float, Field(ge=0, le=1e38)]

METHOD_BACKBONES = {
    "zero_shot": {"clip", "glip", "sd"},
    "coop": {"clip"},
    "prompt_tuning": {"glip"},
    "language_prompt": {"glip"},
    "textual_inversion": {"sd"},
    "cones": {"clip", "glip", "sd"},
}


def _own_all_or_last(value: Any) -> Any:
    """Checked here, as a union would report each of its members at a path that the file does not have."""
    last = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1000
    if value not in ("own", "all") and not last:
        raise PydanticCustomError("rows", "must be own, all, or how many of the last")
    return value


Rows = Annotated[str | int, BeforeValidator(_own_all_or_last)]


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


class ZeroShot(Strict):
    """The class names as the text encoder reads them, nothing searched (Radford et al. 2021, section 3.1.4)."""

    name: Literal["zero_shot"]
    names: dict[Words, Words] = {}
    """What to call a class in this row alone, such as words that describe it; others keep the concept's names."""


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


class PromptTuning(Searched):
    """Prompt tuning for detection: context tokens before each class name are searched through the text encoder.

    It is CoOp's idea (Zhou et al. 2022) on the caption that GLIP reads.
    """

    name: Literal["prompt_tuning"]
    n_ctx: int = Field(4, ge=1, le=64)
    """Context tokens a class name gets."""
    ctx_init: Words | None = None
    """Words the context starts from; None: N(0, 0.02)."""
    class_specific: bool = False
    """A context of its own for each class."""
    lr: Rate = 0.002


class LanguagePrompt(Searched):
    """GLIP's own prompt tuning (Li et al. 2022, language_prompt_v2): a table added to the text encoder's output."""

    name: Literal["language_prompt"]
    lr: Rate = 0.05
    weight_decay: Weight = 0.25


class Denoised(Searched):
    """What a search on the denoising loss of Stable Diffusion can be told besides."""

    noise: Noise | None = None
    gradient_checkpointing: bool = False
    """Compute the UNet's activations twice to keep fewer of them: less memory, more time."""
    sample_every: Count | None = None
    """Epochs between validation pictures, which the registry shows by step; None: none are made. On `sd` only."""


class TextualInversion(Denoised):
    """Textual inversion (Gal et al. 2022): new token vectors at the text encoder's input, in template sentences."""

    name: Literal["textual_inversion"]
    n_tokens: int = Field(1, ge=1, le=64)
    """Vectors that stand for the concept; they start from the first tokens of its class word."""
    lr: Rate = 5e-4
    """Published for a batch of one picture; its authors multiply it by the batch size."""
    weight_decay: Weight = 1e-2
    warmup_epochs: int = Field(0, ge=0, le=100_000_000)


class Cones(Denoised):
    """Concept Embedding Search (arXiv 2305.18993): the text encoder's output itself is searched."""

    name: Literal["cones"]
    init: Literal["text", "word", "image", "blend", "random"] = "text"
    """Start from the text encoder's output for the names (`word` says the same of the class word of `sd`), for CLIP
    also from the classes' mean image features or a blend of both chosen on validation, for `sd` from what the pictures'
    mean CLIP feature predicts of the encoder's output, or from noise."""
    lr: Rate = 3e-3
    n_tokens: int | None = Field(None, ge=1, le=64)
    """Tokens a class; None: as many as its name has. CLIP's text encoder hands over one."""
    rows: Rows = "own"
    """On `sd`, which rows of the encoder's output are searched: the concept's own in every template, all of a sentence,
    or the last so many, as HiPer does (Han et al. 2023)."""


MethodSettings = ZeroShot | CoOp | PromptTuning | LanguagePrompt | TextualInversion | Cones
MethodConfig = Annotated[MethodSettings, Field(discriminator="name")]


METHODS: dict[str, type[Strict]] = {
    get_args(kind.model_fields["name"].annotation)[0]: kind for kind in get_args(MethodSettings)
}


def method_summaries() -> dict[str, str]:
    """What each method does, in the first sentence of its settings' docstring."""
    return {name: (kind.__doc__ or "").strip().split("\n")[0] for name, kind in METHODS.items()}
