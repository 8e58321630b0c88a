"""Fine-tuning a whole detector."""

from typing import TYPE_CHECKING, ClassVar, Literal, cast

from pydantic import Field

from cones.common.settings import Rate
from cones.finetuning.settings import Finetune

if TYPE_CHECKING:
    from cones.features.encoded import Encoded
    from cones.finetuning.settings import Trains
    from cones.interfaces.protocols import Backbone, DrawsMasks


class Full(Finetune):
    """The whole detector trains, on pictures that are encoded anew, and the embeddings with it."""

    families: ClassVar[frozenset[str]] = frozenset({"grounding"})
    keeps_features: ClassVar[bool] = False
    kind: Literal["full"]
    prompt_lr: Rate = 1e-3
    """Of the embeddings."""
    least_scale: float = Field(0.5, gt=0, le=1)
    """Each training picture is shrunk by a random factor from this to 1."""
    colour_jitter: float = Field(0.2, ge=0, lt=1)
    """Each colour channel of a training picture is scaled up or down by at most this, and shifted likewise, in standard
    deviations."""

    def what_trains(self, backbone: "Backbone", encoded: "Encoded") -> "Trains":
        from cones.finetuning.grounding import parts_of

        return parts_of(cast("DrawsMasks", backbone), encoded, ("backbone", "neck", "bbox_head", "mask_head"))
