"""Fine-tuning a detector's head."""

from typing import TYPE_CHECKING, ClassVar, Literal, cast

from cones.common.settings import Rate
from cones.finetuning.settings import Finetune

if TYPE_CHECKING:
    from cones.features.encoded import Encoded
    from cones.finetuning.settings import Trains
    from cones.interfaces.protocols import Backbone, DrawsMasks


class Head(Finetune):
    """The detection head trains, with the mask head where there are masks to learn, and the embeddings with them."""

    families: ClassVar[frozenset[str]] = frozenset({"grounding"})
    kind: Literal["head"]
    prompt_lr: Rate = 1e-3
    """Of the embeddings."""

    def what_trains(self, backbone: "Backbone", encoded: "Encoded") -> "Trains":
        from cones.finetuning.grounding import parts_of

        return parts_of(cast("DrawsMasks", backbone), encoded, ("bbox_head", "mask_head"))
