"""LoRA: low-rank additions to linear layers."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

from pydantic import Field

from cones.common.settings import Count, OnlyFor, Rate, Weight
from cones.finetuning.settings import Finetune
from cones.methods.searched import Noise

if TYPE_CHECKING:
    from cones.features.encoded import Encoded
    from cones.finetuning.settings import Trains
    from cones.interfaces.protocols import Adapts, Backbone


class Lora(Finetune):
    """Low-rank additions train (Hu et al. 2021): to the linear layers of a detector's head, with the embeddings;
    or to the attention layers of a diffusion model."""

    families: ClassVar[frozenset[str]] = frozenset({"grounding", "diffusion"})
    kind: Literal["lora"]
    rank: int = Field(4, ge=1, le=256)
    """Of the additions."""
    prompt_lr: Annotated[Rate, OnlyFor("grounding")] = 1e-3
    """Of the embeddings."""
    prior_pictures: Annotated[int | None, OnlyFor("diffusion")] = Field(None, ge=0, le=10_000)
    """Pictures of the class word that the base model makes of itself first, for what it trains on beside the subject's
    (prior preservation, Ruiz et al. 2023, section 3.2); None: none."""
    prior_weight: Annotated[Weight, OnlyFor("diffusion")] = 1.0
    """Of the loss on them."""
    noise: Annotated[Noise | None, OnlyFor("diffusion")] = None
    """How a step draws its noise."""
    gradient_checkpointing: Annotated[bool, OnlyFor("diffusion")] = False
    """Less memory, more time."""
    sample_every: Annotated[Count | None, OnlyFor("diffusion")] = None
    """Steps between validation pictures, which the registry shows; None: none are made."""

    @property
    def class_pictures(self) -> int:
        """How many pictures of the class word it goes on learning."""
        return self.prior_pictures or 0

    def what_trains(self, backbone: "Backbone", encoded: "Encoded") -> "Trains":
        from cones.finetuning.additions import LORA_SCALE, add_lora

        part, layers = cast("Adapts", backbone).lora_layers()
        seed = encoded.about["seed"]
        return add_lora(part, backbone.part(part), self.rank, seed, layers), {"lora_scale": LORA_SCALE}
