"""The settings of methods, and which kinds of backbone each is defined on."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from cones.config_data import Strict

METHOD_BACKBONES = {
    "zero_shot": {"clip", "glip"},
    "coop": {"clip"},
    "prompt_tuning": {"glip"},
    "language_prompt": {"glip"},
    "cones": {"clip", "glip"},
}


class Searched(Strict):
    """How a method's parameters are searched. One epoch sees each training picture once."""

    optimiser: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of SGD."""
    epochs: int = Field(200, ge=1)
    batch_size: int = Field(32, ge=1)
    warmup_epochs: int = Field(1, ge=0)
    """Epochs at the constant rate `warmup_lr` before the cosine."""
    warmup_lr: float = Field(1e-5, gt=0)
    patience: int | None = Field(20, ge=1)
    """Epochs without a better validation score before the search stops; None: never."""
    validate_every: int = Field(1, ge=1)
    """Epochs between validations. One costs a pass over the validation pictures' features."""
    checkpoint_seconds: float = Field(10.0, ge=0)
    """A checkpoint is written at most this often."""


class ZeroShot(Strict):
    """The class names as the text encoder reads them, nothing searched (Radford et al. 2021, section 3.1.4)."""

    name: Literal["zero_shot"]
    names: dict[str, str] = {}
    """What to call a class in this row alone, such as words that describe it; others keep the concept's names."""


class CoOp(Searched):
    """Context Optimization (Zhou et al. 2022): context tokens are searched through the text encoder.

    The defaults are its published settings.
    """

    name: Literal["coop"]
    n_ctx: int = Field(16, ge=1, le=64)
    """Context tokens; with `ctx_init` their number is that of its words."""
    ctx_init: str | None = None
    """Words the context starts from, such as "a photo of a"; None: N(0, 0.02)."""
    class_token_position: Literal["end", "middle", "front"] = "end"
    class_specific: bool = False
    """A context of its own for each class (CoOp's CSC)."""
    optimiser: Literal["adamw", "sgd"] = "sgd"
    lr: float = Field(0.002, gt=0)
    weight_decay: float = Field(5e-4, ge=0)
    epochs: int = Field(200, ge=1)
    """Published: 50 at 1 shot, 100 at 2 and 4, 200 at 8 and 16."""
    patience: int | None = Field(None, ge=1)


class PromptTuning(Searched):
    """Prompt tuning for detection: context tokens before each class name are searched through the text encoder.

    It is CoOp's idea (Zhou et al. 2022) on the caption that GLIP reads.
    """

    name: Literal["prompt_tuning"]
    n_ctx: int = Field(4, ge=1, le=64)
    """Context tokens a class name gets."""
    ctx_init: str | None = None
    """Words the context starts from; None: N(0, 0.02)."""
    class_specific: bool = False
    """A context of its own for each class."""
    lr: float = Field(0.002, gt=0)


class LanguagePrompt(Searched):
    """GLIP's own prompt tuning (Li et al. 2022, language_prompt_v2): a table added to the text encoder's output."""

    name: Literal["language_prompt"]
    lr: float = Field(0.05, gt=0)
    weight_decay: float = Field(0.25, ge=0)


class Cones(Searched):
    """Concept Embedding Search (arXiv 2305.18993): the text encoder's output itself is searched."""

    name: Literal["cones"]
    init: Literal["text", "image", "blend", "random"] = "text"
    """Start from the text encoder's output, for CLIP also from the classes' mean image features or a blend of both
    chosen on validation, or from noise."""
    lr: float = Field(3e-3, gt=0)
    n_tokens: int | None = Field(None, ge=1, le=64)
    """Tokens a class; None: as many as its name has. CLIP's text encoder hands over one."""


MethodSettings = ZeroShot | CoOp | PromptTuning | LanguagePrompt | Cones
MethodConfig = Annotated[MethodSettings, Field(discriminator="name")]


def method_summaries() -> dict[str, str]:
    """What each method does, in the first sentence of its settings' docstring."""
    kinds = get_args(get_args(MethodConfig)[0])
    return {get_args(k.model_fields["name"].annotation)[0]: (k.__doc__ or "").strip().split("\n")[0] for k in kinds}
