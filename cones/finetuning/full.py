"""Fine-tuning a whole model."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

from pydantic import Field

from cones.common.settings import OnlyFor, Processes, Rate
from cones.finetuning.settings import Encoders, Finetune, trained_parts

if TYPE_CHECKING:
    from cones.features.encoded import Encoded
    from cones.finetuning.settings import Trains
    from cones.interfaces.protocols import Backbone, DrawsMasks


class Full(Finetune):
    """The whole detector trains, on pictures that are encoded anew, and the embeddings with it; or both encoders of a
    CLIP, whose usual rate is 1e-5 and `weight_decay` 0.1 (Wortsman et al. 2022)."""

    families: ClassVar[frozenset[str]] = frozenset({"grounding", "dual_encoder"})
    keeps_features: ClassVar[bool] = False
    kind: Literal["full"]
    processes: Processes = 1
    prompt_lr: Rate = 1e-3
    """Of the embeddings."""
    encoders: Annotated[Encoders, OnlyFor("dual_encoder")] = "both"
    """Which are trained. The text encoder is no part of a row whose embeddings were searched."""
    least_scale: Annotated[float, OnlyFor("grounding")] = Field(0.5, gt=0, le=1)
    """Each training picture is shrunk by a random factor from this to 1."""
    colour_jitter: Annotated[float, OnlyFor("grounding")] = Field(0.2, ge=0, lt=1)
    """Each colour channel of a training picture is scaled up or down by at most this, and shifted likewise, in standard
    deviations."""

    def what_trains(self, backbone: "Backbone", encoded: "Encoded") -> "Trains":
        if backbone.family == "dual_encoder":
            from cones.search.trained import parameters_of

            parts = dict(backbone.part("").named_children())
            begins = trained_parts(self.encoders)
            return parameters_of({name: part for name, part in parts.items() if name.startswith(begins)}), {}
        from cones.finetuning.grounding import parts_of

        return parts_of(cast("DrawsMasks", backbone), encoded, ("backbone", "neck", "bbox_head", "mask_head"))
