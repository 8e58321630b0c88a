"""LoRA: low-rank additions to linear layers."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

from pydantic import Field

from cones.common.settings import Count, OnlyFor, Processes, Rate, Weight
from cones.finetuning.settings import Encoders, Finetune, trained_parts
from cones.methods.searched import Noise

if TYPE_CHECKING:
    from cones.features.encoded import Encoded
    from cones.finetuning.settings import Trains
    from cones.interfaces.protocols import Adapts, Backbone


class Lora(Finetune):
    """Low-rank additions train (Hu et al. 2021): to the linear layers of a detector's head, with the embeddings; to the
    attention layers of a diffusion model; or to those of CLIP's encoders.

    On CLIP this is CLIP-LoRA (Zanella and Ben Ayed 2024) with its published `rank: 2`, `lr: 2e-4`, `batch_size: 32`,
    `weight_decay: 0.01` and 500 `steps` for each shot; here validation chooses among the steps, and there it does not.
    """

    families: ClassVar[frozenset[str]] = frozenset({"grounding", "diffusion", "dual_encoder"})
    kind: Literal["lora"]
    processes: Processes = 1
    rank: int = Field(4, ge=1, le=256)
    """Of the additions."""
    alpha: Annotated[float, OnlyFor("dual_encoder")] = Field(1.0, gt=0, le=256)
    """Over the rank, what the additions are multiplied by."""
    dropout: Annotated[float, OnlyFor("dual_encoder")] = Field(0.25, ge=0, lt=1)
    """Share of an addition's inputs that a step leaves out."""
    encoders: Annotated[Encoders, OnlyFor("dual_encoder")] = "both"
    """Which are trained. The text encoder is no part of a row whose embeddings were searched."""
    prompt_lr: Annotated[Rate, OnlyFor("grounding", "dual_encoder")] = 1e-3
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
        seed, on_clip = encoded.about["seed"], backbone.family == "dual_encoder"
        if on_clip:
            parts = trained_parts(self.encoders)
            layers = [layer for layer in layers or [] if layer.startswith(parts)]
        scale, dropout = (self.alpha / self.rank, self.dropout) if on_clip else (LORA_SCALE, 0.0)
        return add_lora(part, backbone.part(part), self.rank, seed, layers, scale, dropout), {"lora_scale": scale}
