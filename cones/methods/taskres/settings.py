"""Task Residual (TaskRes): the settings."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from cones.common.settings import Count, RateOrAuto, Weight
from cones.methods.searched import Searched

if TYPE_CHECKING:
    from torch import nn

    from cones.interfaces.protocols import Backbone
    from cones.methods.start import Start


class TaskRes(Searched):
    """Task Residual (Yu et al. 2023): what is searched is added to the fixed embedding of each class name.

    The defaults are its published settings, but for the optimiser: Adam there, whose weight decay is not decoupled. Its
    embeddings are as long as the text encoder gives them, ours of unit length, so that one rate moves ours further.
    """

    families: ClassVar[frozenset[str]] = frozenset({"dual_encoder"})
    name: Literal["taskres"]
    alpha: float = Field(0.5, gt=0, le=100)
    """What the residual is multiplied by."""
    lr: RateOrAuto = 0.002
    weight_decay: Weight = 5e-4
    epochs: Count = 200
    """Published: 100 at 1, 2 and 4 shots, 200 at 8 and 16."""
    batch_size: Count = 256
    patience: Count | None = None

    def at_shots(self, shots: int) -> "TaskRes":
        if "epochs" in self.model_fields_set:
            return self
        return self.model_copy(update={"epochs": 100 if shots <= 4 else 200})

    def build(self, backbone: "Backbone", start: "Start") -> "nn.Module":
        from cones.methods.taskres.module import TaskRes as Module

        return Module(start.text, self.alpha)
