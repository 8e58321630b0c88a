"""The settings of a SigLIP, and how one is opened."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cones.backbones.settings import BackboneConfig, Family

if TYPE_CHECKING:
    from cones.backbones.siglip.siglip import Siglip


FAMILY: Family = "dual_encoder"


class SiglipModel(BackboneConfig):
    """A SigLIP of transformers, a SigLIP 2 of one resolution, or a MedSigLIP."""

    family: ClassVar[Family] = FAMILY
    tasks: ClassVar[frozenset[str]] = frozenset({"classification"})
    kind: Literal["siglip"]


def open_model(folder: Path, device: Any = "cpu", task: str | None = None, **known: Any) -> "Siglip":
    """Open one from its folder; `known` may have its `logit_scale`, so that no weights are read for it."""
    from cones.backbones.siglip.siglip import Siglip

    return Siglip(folder, device, **known)
