"""The settings of fine-tuning."""

from typing import Literal

from pydantic import Field

from cones.common.settings import Count, Name, Rate, Strict, Weight
from cones.methods.searched import Noise

FINETUNES = {"glip": ("head", "lora", "full", "mask_head"), "sd": ("lora", "dreambooth")}
"""Which kinds of fine-tuning are defined on a kind of backbone."""


KEEPS_FEATURES = {"head": True, "lora": True, "mask_head": True, "full": False, "dreambooth": True}
"""Whether the kept features of pictures hold after a kind of fine-tuning: not where it trains what encodes pictures."""


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
