"""The settings of a MetaCLIP 2, and how one is opened."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cones.backbones.settings import BackboneConfig, Family

if TYPE_CHECKING:
    from cones.backbones.metaclip_2.metaclip_2 import MetaClip2

FAMILY: Family = "dual_encoder"


class MetaClip2Model(BackboneConfig):
    """A MetaCLIP 2 of transformers, whose names may be words of any language."""

    family: ClassVar[Family] = FAMILY
    tasks: ClassVar[frozenset[str]] = frozenset({"classification"})
    kind: Literal["metaclip_2"]


def open_model(folder: Path, device: Any = "cpu", task: str | None = None, **known: Any) -> "MetaClip2":
    """Open one from its folder; `known` may have its `logit_scale`, so that no weights are read for it."""
    from cones.backbones.metaclip_2.metaclip_2 import MetaClip2

    return MetaClip2(folder, device, **known)
