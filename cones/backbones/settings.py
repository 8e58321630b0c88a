"""The settings of base models."""

from typing import Annotated, Literal

from pydantic import StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from cones.common.choices import REVISION
from cones.common.settings import ReadBy, Source, Strict

Revision = Annotated[str, StringConstraints(pattern=REVISION)]


class ModelSource(Strict):
    """Where a model is: a folder in its library's layout, or a hub name with a pinned revision."""

    source: Source
    revision: Revision | None = None
    """Commit of a hub model, 40 hex digits; None for a folder."""


class BackboneConfig(ModelSource):
    """A base model: a folder in its library's layout, or but for GLIP a hub name with a pinned revision."""

    kind: Literal["clip", "glip", "sd"]
    """`sd` is a Stable Diffusion of diffusers."""
    clip: ModelSource | None = None
    """Of an `sd`, the CLIP whose text encoder it has: `init: image` starts from what it sees, and it measures `clip_i`
    and `clip_t`."""
    judge: Annotated[ModelSource | None, ReadBy("evaluate")] = None
    """Of an `sd`, the image encoder that measures likeness as `dino`: a DINO, or any other that took no part."""

    @model_validator(mode="after")
    def _helpers(self) -> "BackboneConfig":
        for name in ("clip", "judge"):
            if (getattr(self, name) is None) == (self.kind == "sd"):
                needs = f"an `sd` backbone needs `{name}`" if self.kind == "sd" else f"`{name}` is for an `sd` backbone"
                raise PydanticCustomError("helpers", needs)  # type: ignore[arg-type]
        return self
