"""Giving a detector a mask head."""

from typing import TYPE_CHECKING, ClassVar, Literal, cast

from cones.finetuning.settings import Finetune

if TYPE_CHECKING:
    from cones.features.encoded import Encoded
    from cones.finetuning.settings import Trains
    from cones.interfaces.protocols import Backbone, DrawsMasks


class MaskHead(Finetune):
    """A mask head trains on kept features, a new one where the model has none; the embeddings stay."""

    families: ClassVar[frozenset[str]] = frozenset({"grounding"})
    masks_only: ClassVar[bool] = True
    kind: Literal["mask_head"]

    def what_trains(self, backbone: "Backbone", encoded: "Encoded") -> "Trains":
        from cones.finetuning.grounding import mask_head_of

        return mask_head_of(cast("DrawsMasks", backbone), encoded)
