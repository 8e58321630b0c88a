"""The settings of a Stable Diffusion, and how one is opened."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from cones.backbones.settings import BackboneConfig, Family, ModelSource
from cones.common.settings import ReadBy

if TYPE_CHECKING:
    from cones.backbones.sd.sd import Diffusion


FAMILY: Family = "diffusion"


class DiffusionModel(BackboneConfig):
    """A Stable Diffusion of diffusers, with what stands beside it."""

    family: ClassVar[Family] = FAMILY
    tasks: ClassVar[frozenset[str]] = frozenset({"generation"})
    needs: ClassVar[tuple[str, ...]] = ("clip", "judge")
    extra: ClassVar[str] = "generation"
    kind: Literal["sd"]
    clip: ModelSource | None = None
    """The CLIP whose text encoder it has: `init: image` starts from what it sees; it measures `clip_i` and `clip_t`.
    """
    judge: Annotated[ModelSource | None, ReadBy("evaluate")] = None
    """The image encoder that measures likeness as `dino`: a DINO, or any other that took no part."""


def open_model(folder: Path, device: Any = "cpu", task: str | None = None, **known: Any) -> "Diffusion":
    """Open one from its folder."""
    from cones.backbones.sd.sd import Diffusion

    return Diffusion(folder, device)
