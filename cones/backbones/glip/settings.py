"""The settings of a GLIP, and how one is opened."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cones.backbones.settings import BackboneConfig, Family

if TYPE_CHECKING:
    from cones.backbones.glip.glip import Glip


FAMILY: Family = "grounding"


class GlipModel(BackboneConfig):
    """A GLIP of mmdet: a folder that `cones.backbones.glip.convert` makes."""

    family: ClassVar[Family] = FAMILY
    tasks: ClassVar[frozenset[str]] = frozenset({"detection", "segmentation"})
    extra: ClassVar[str] = "detection"
    kind: Literal["glip"]


def open_model(folder: Path, device: Any = "cpu", task: str | None = None, **known: Any) -> "Glip":
    """Open one from its folder; for detection it draws no masks."""
    from cones.backbones.glip.glip import Glip

    return Glip(folder, device, draws_masks=task != "detection", **known)
