"""DreamBooth."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from cones.common.settings import Count, Processes, Weight
from cones.finetuning.settings import Finetune
from cones.methods.searched import Noise

PUBLISHED_PRIOR = 200

if TYPE_CHECKING:
    from cones.features.encoded import Encoded
    from cones.finetuning.settings import Trains
    from cones.interfaces.protocols import Backbone


class DreamBooth(Finetune):
    """DreamBooth (Ruiz et al. 2023): the whole UNet learns a subject from a row's embeddings on; these stay."""

    families: ClassVar[frozenset[str]] = frozenset({"diffusion"})
    kind: Literal["dreambooth"]
    processes: Processes = 1
    prior_pictures: int | None = Field(None, ge=0, le=10_000)
    """Pictures of the class word that the base model makes of itself first, for what it trains on beside the subject's
    (prior preservation, Ruiz et al. 2023, section 3.2); None: 200, as published."""
    prior_weight: Weight = 1.0
    """Of the loss on them."""
    noise: Noise | None = None
    """How a step draws its noise."""
    gradient_checkpointing: bool = False
    """Less memory, more time."""
    sample_every: Count | None = None
    """Steps between validation pictures, which the registry shows; None: none are made."""

    @property
    def class_pictures(self) -> int:
        """How many pictures of the class word it goes on learning."""
        return PUBLISHED_PRIOR if self.prior_pictures is None else self.prior_pictures

    def what_trains(self, backbone: "Backbone", encoded: "Encoded") -> "Trains":
        from cones.search.trained import parameters_of

        return parameters_of({"unet": backbone.part("unet")}), {}
