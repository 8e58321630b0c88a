"""The settings of base models, concepts and rows."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from cones.common.choices import REVISION
from cones.data.settings import Count, Seed, Source, Strict, Words
from cones.methods.searched import MethodConfig, Noise, Rate, Weight


def _name(text: str) -> str:
    """Names become folders, stages and settings of DVC, which takes a dot for the step to a setting within."""
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]{0,79}", text):
        raise PydanticCustomError("name", NAMES)
    return text


def _one_place(text: str) -> str:
    if not re.fullmatch(r"[^{}]*\{\}[^{}]*", text):
        raise PydanticCustomError(
            "one_place", "must be a sentence with {place} once, where the words go", {"place": "{}"}
        )
    return text


NAMES = "cannot be a name: letters, digits, `_` and `-`, a letter or digit first, at most 80"
Name = Annotated[str, AfterValidator(_name)]
Template = Annotated[Words, AfterValidator(_one_place)]

BACKBONE_TASKS = {
    "clip": {"classification"},
    "glip": {"detection", "segmentation"},
    "sd": {"generation"},
}
"""Which tasks a kind of backbone does."""
FINETUNES = {"glip": ("head", "lora", "full", "mask_head"), "sd": ("lora", "dreambooth")}
"""Which kinds of fine-tuning are defined on a kind of backbone."""
KEEPS_FEATURES = {"head": True, "lora": True, "mask_head": True, "full": False, "dreambooth": True}
"""Whether the kept features of pictures hold after a kind of fine-tuning: not where it trains what encodes pictures."""


Revision = Annotated[str, StringConstraints(pattern=REVISION)]


class ModelSource(Strict):
    """Where a model is: a folder in its library's layout, or a hub name with a pinned revision."""

    source: Source
    revision: Revision | None = None
    """Commit of a hub model, 40 hex digits; None for a folder."""


class BackboneConfig(ModelSource):
    """A base model: a folder in its library's layout, or but for GLIP a hub name with a pinned revision."""

    kind: Literal["clip", "glip", "sd"]
    """`sd` is a Stable Diffusion of diffusers."""
    clip: ModelSource | None = None
    """Of an `sd`, the CLIP whose text encoder it has: `init: image` starts from what it sees, and it measures `clip_i`
    and `clip_t`."""
    judge: ModelSource | None = None
    """Of an `sd`, the image encoder that measures likeness as `dino`: a DINO, or any other that took no part."""

    @model_validator(mode="after")
    def _helpers(self) -> "BackboneConfig":
        for name in ("clip", "judge"):
            if (getattr(self, name) is None) == (self.kind == "sd"):
                needs = f"an `sd` backbone needs `{name}`" if self.kind == "sd" else f"`{name}` is for an `sd` backbone"
                raise PydanticCustomError("helpers", needs)  # type: ignore[arg-type]
        return self


class BaseConcept(Strict):
    """What is to be told apart or found, by which base model, from how many pictures."""

    backbone: Name
    data: Name
    val_shots: Count | None = None
    """Validation pictures a class, the same for every row; None: as many as `shots`, or all there are if fewer."""
    seed: Seed = 0
    names: dict[Words, Words] = {}
    """What to call a class in a sentence, where its folder's name is not how one would say it."""


class ClassificationConcept(BaseConcept):
    """What a whole picture shows."""

    task: Literal["classification"]
    shots: int = Field(ge=1, le=100_000)
    """Training pictures a class. Draws are nested: the pictures of 4 shots are among those of 16."""
    views: int = Field(8, ge=1, le=256)
    """Views of each training picture that are encoded once: the plain one and random crops and flips."""
    min_crop: float = Field(0.5, gt=0, le=1)
    """Smallest share of a picture's area that a random view keeps (CoOp's own is 0.08)."""
    templates: Annotated[list[Template], Field(min_length=1)] | None = None
    """Sentences a class name is put into; their text embeddings are averaged. None: the data set's own, where its
    layout has one, else "a photo of a {}."."""


class DetectionConcept(BaseConcept):
    """What is where in a picture: a box around each object, and its mask too where the task is segmentation."""

    task: Literal["detection", "segmentation"]
    shots: int | None = Field(ge=1, le=100_000)
    """Training pictures that show a class, drawn greedily until each class has them; null: all there are."""
    views: int = Field(2, ge=1, le=2)
    """Views of each training picture that are encoded once: the plain one, and with 2 its mirror image."""
    score_threshold: float = Field(0.3, ge=0, le=1)
    """Boxes below it are not drawn, and not predicted unless asked for; the metrics count them all."""


class GenerationConcept(Strict):
    """A subject or a style to make new pictures of."""

    task: Literal["generation"]
    backbone: Name
    data: Name
    word: Words
    """What kind of thing it is, in words that the base model knows: a search may start from it."""
    learns: Literal["object", "style"] = "object"
    """Which sentences a search puts it into, where `templates` gives none."""
    templates: Annotated[list[Template], Field(min_length=1)] | None = None
    """Sentences for the search; None: those of textual inversion for an object or a style. Pictures are sampled from
    the first one."""
    prompts: Annotated[list[Template], Field(min_length=1)] | None = None
    """Sentences that the evaluation makes pictures of, to see whether a sentence still steers them; None: a few places
    and looks."""
    views: int = Field(8, ge=1, le=256)
    """Views of each training picture that are encoded once: the plain one and random crops and flips."""
    min_crop: float = Field(0.8, gt=0, le=1)
    """Smallest share of a picture's area that a random view keeps."""
    flip: bool = True
    """Mirror random views every other time; not for a subject that has a right and a left."""
    samples: int = Field(16, ge=2, le=1000)
    """Pictures that the evaluation makes of the first template; of each of `prompts` a quarter as many."""
    guidance: float = Field(7.5, ge=1, le=50)
    """Scale of classifier-free guidance in samples."""
    sampling_steps: int = Field(30, ge=1, le=1000)
    seed: Seed = 0


ConceptConfig = Annotated[ClassificationConcept | DetectionConcept | GenerationConcept, Field(discriminator="task")]


class RunConfig(Strict):
    """One row: a method applied to a concept."""

    concept: Name
    method: MethodConfig


class FinetuneConfig(Strict):
    """A second step after a row: weights of the base model are trained, and the row's embeddings go on with them."""

    concept: Name
    from_: Name = Field(alias="from")
    """The row of the same concept to start from."""
    kind: Literal["head", "lora", "full", "mask_head", "dreambooth"]
    """What trains. Of a GLIP: the detection head, low-rank additions to its linear layers, the whole detector, or a
    mask head. Of a Stable Diffusion: low-rank additions to its attention layers, or `dreambooth`, the whole UNet; the
    embeddings stay as they were found."""
    steps: Count = 200
    batch_size: Count = 16
    lr: Rate = 1e-4
    """Of the weights; GLIP's published rate for full tuning."""
    prompt_lr: Rate = 1e-3
    """Of the embeddings."""
    weight_decay: Weight = 0.05
    """Of the weights; the embeddings have none."""
    rank: int = Field(4, ge=1, le=256)
    """Of LoRA's additions."""
    prior_pictures: int | None = Field(None, ge=0, le=10_000)
    """Pictures of the class word that the base model makes of itself first, for what it trains on beside the subject's
    (DreamBooth's prior preservation); None: 200 for `dreambooth`, as published, and none for `lora`."""
    prior_weight: Weight = 1.0
    """Of the loss on them."""
    noise: Noise | None = None
    """How a step on a Stable Diffusion draws its noise."""
    gradient_checkpointing: bool = False
    """On a Stable Diffusion: less memory, more time."""
    sample_every: Count | None = None
    """On a Stable Diffusion: steps between validation pictures, which the registry shows; None: none are made."""
    least_scale: float = Field(0.5, gt=0, le=1)
    """`full` shrinks each training picture by a random factor from this to 1. Other kinds train on kept features."""
    colour_jitter: float = Field(0.2, ge=0, lt=1)
    """`full` scales each colour channel of a training picture up or down by at most this, and shifts it likewise, in
    standard deviations."""
    validate_every: Count = 50
    """Steps between validations."""
    checkpoint_seconds: float = Field(10.0, ge=0)
