"""Tip-Adapter and Tip-Adapter-F: the settings."""

from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import Field

from cones.common.settings import Count, RateOrAuto, Weight
from cones.methods.searched import Method, Searched

if TYPE_CHECKING:
    from torch import nn

    from cones.interfaces.protocols import Backbone
    from cones.methods.start import Start


@runtime_checkable
class Scales(Protocol):
    """How far alpha and beta are looked for."""

    @property
    def most_alpha(self) -> float: ...

    @property
    def most_beta(self) -> float: ...


class TipAdapter(Method):
    """Tip-Adapter (Zhang et al. 2022): the training pictures tell what pictures like them show; nothing is trained.

    As published, alpha and beta are chosen on validation, the best of 20 times 200; without it they are 1 and 5.5.
    """

    families: ClassVar[frozenset[str]] = frozenset({"dual_encoder"})
    name: Literal["tip_adapter"]
    most_alpha: float = Field(3.0, gt=0.1, le=1000)
    """Where the values end that are tried for alpha, the weight of the pictures beside the text; they begin at 0.1."""
    most_beta: float = Field(7.0, gt=0.1, le=1000)
    """The same of beta, by which the weight of a picture falls with its distance."""

    def build(self, backbone: "Backbone", start: "Start") -> "nn.Module":
        from cones.methods.tip_adapter.module import build

        return build(self, backbone, start)


class TipAdapterF(Searched):
    """Tip-Adapter-F (Zhang et al. 2022): as Tip-Adapter, with the features of the training pictures trained further.

    The defaults are its published settings; alpha and beta are chosen once more when it is trained, on validation if
    there is some.
    """

    families: ClassVar[frozenset[str]] = frozenset({"dual_encoder"})
    name: Literal["tip_adapter_f"]
    alpha: float = Field(1.0, gt=0, le=1000)
    """The weight of the pictures beside the text while they are trained."""
    beta: float = Field(5.5, gt=0, le=1000)
    """By which the weight of a picture falls with its distance, while they are trained."""
    most_alpha: float = Field(3.0, gt=0.1, le=1000)
    most_beta: float = Field(7.0, gt=0.1, le=1000)
    weight_decay: Weight = 0.01
    lr: RateOrAuto = 1e-3
    epochs: Count = 20
    batch_size: Count = 256
    warmup_epochs: int = Field(0, ge=0, le=100_000_000)
    patience: Count | None = None

    def build(self, backbone: "Backbone", start: "Start") -> "nn.Module":
        from cones.methods.tip_adapter.module import build

        return build(self, backbone, start, self.alpha, self.beta, trained=True)
