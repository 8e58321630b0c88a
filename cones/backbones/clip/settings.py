"""The settings of a CLIP, and how one is opened."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cones.backbones.settings import BackboneConfig, Family

if TYPE_CHECKING:
    from cones.backbones.clip.clip import Clip


FAMILY: Family = "dual_encoder"


class ClipModel(BackboneConfig):
    """A CLIP of transformers."""

    family: ClassVar[Family] = FAMILY
    tasks: ClassVar[frozenset[str]] = frozenset({"classification"})
    kind: Literal["clip"]


def open_model(folder: Path, device: Any = "cpu", task: str | None = None, **known: Any) -> "Clip":
    """Open one from its folder; `known` may have its `logit_scale`, so that no weights are read for it."""
    from cones.backbones.clip.clip import Clip

    return Clip(folder, device, **known)
