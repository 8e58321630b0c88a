"""The settings of a BiomedCLIP, and how one is opened."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cones.backbones.settings import BackboneConfig, Family

if TYPE_CHECKING:
    from cones.backbones.biomedclip.biomedclip import BiomedClip

FAMILY: Family = "dual_encoder"


class BiomedClipModel(BackboneConfig):
    """A BiomedCLIP, converted from open_clip's layout."""

    family: ClassVar[Family] = FAMILY
    tasks: ClassVar[frozenset[str]] = frozenset({"classification"})
    kind: Literal["biomedclip"]


def open_model(folder: Path, device: Any = "cpu", task: str | None = None, **known: Any) -> "BiomedClip":
    """Open one from its folder; `known` may have its `logit_scale`, so that no weights are read for it."""
    from cones.backbones.biomedclip.biomedclip import BiomedClip

    return BiomedClip(folder, device, **known)
