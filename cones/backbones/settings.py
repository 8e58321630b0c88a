"""The settings of base models."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import StringConstraints

from cones.common.choices import REVISION
from cones.common.settings import Source, Strict

Revision = Annotated[str, StringConstraints(pattern=REVISION)]


class ModelSource(Strict):
    """Where a model is: a folder in its library's layout, or a hub name with a pinned revision."""

    source: Source
    revision: Revision | None = None
    """Commit of a hub model, 40 hex digits; None for a folder."""


Family = Literal["dual_encoder", "late", "grounding", "diffusion"]
"""What base models have in common that a method works on: two encoders that meet in one space; a detector whose text
side meets pictures late; one that fuses both; a diffusion model that reads what a text encoder hands over."""


class BackboneConfig(ModelSource):
    """A base model: a folder in its library's layout, or a hub name with a pinned revision."""

    family: ClassVar[Family]
    tasks: ClassVar[frozenset[str]]
    """What it can do."""
    kind: str
    """The name of its folder in `cones/backbones`."""

    needs: ClassVar[tuple[str, ...]] = ()
    """Fields with the models that must stand beside it."""
    extra: ClassVar[str] = ""
    """The extra of this package that a prediction needs as well."""

    def models(self) -> Iterator[tuple[str, ModelSource]]:
        """It and the models beside it that it names, by what they are called: its kind, and the settings' names."""
        yield self.kind, self
        for name in type(self).model_fields:
            if isinstance(model := getattr(self, name), ModelSource):
                yield name, model
