"""The settings of a study."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SerializeAsAny
from pydantic_core import PydanticCustomError

from cones.common.settings import Count, Name, Strict, Words
from cones.methods.searched import Method
from cones.tasks.classification.settings import ClassificationConcept
from cones.tasks.settings import Template

MOST_VALIDATED = 4
"""Validation pictures a class, if nothing else is said: as many as shots and at most these (Zhou et al. 2022)."""


def _each_once(shots: list[int]) -> list[int]:
    if len(set(shots)) < len(shots):
        raise PydanticCustomError("each_once", "must name each number of shots once")
    return shots


class Draws(Strict):
    """Which pictures the cells of a study see: the same for all methods."""

    protocol: Literal["few_shot"] = "few_shot"
    """`few_shot`: some pictures of each class to search on, all classes tested (Zhou et al. 2022, section 4.1)."""
    data: Name
    backbone: Name
    shots: Annotated[list[Count], Field(min_length=1, max_length=32), AfterValidator(_each_once)]
    seeds: int = Field(3, ge=1, le=100)
    """How many draws of pictures there are; their seeds are 1, 2, ..."""
    val_shots: Count | None = None
    """Validation pictures a class; None: as many as shots, at most 4, as in CoOp."""
    views: int = Field(8, ge=1, le=256)
    """Views of each training picture that are encoded once."""
    min_crop: float = Field(0.5, gt=0, le=1)
    """Smallest share of a picture's area that a random view keeps."""
    templates: Annotated[list[Template], Field(min_length=1)] | None = None
    """Sentences a class name is put into; None: the data set's own, or "a photo of a {}."."""
    names: dict[Words, Words] = {}
    """What to call a class in a sentence."""

    def concept(self, shots: int, seed: int) -> ClassificationConcept:
        """The concept of one cell's pictures."""
        return ClassificationConcept(
            task="classification", backbone=self.backbone, data=self.data, shots=shots, seed=seed, views=self.views,
            val_shots=self.val_shots or min(shots, MOST_VALIDATED), min_crop=self.min_crop, templates=self.templates,
            names=self.names,
        )  # fmt: skip


class Study(Draws):
    """Methods on one data set, over numbers of shots and seeds: each of them is a cell."""

    methods: dict[Name, SerializeAsAny[Method]] = Field(min_length=1)
    """The settings of each by a name of yours; or a list of names, each as published."""

    @property
    def draws(self) -> Draws:
        return Draws(**{name: getattr(self, name) for name in Draws.model_fields})

    @property
    def by_shots(self) -> dict[str, dict[str, Method]]:
        """Each method as it is at each number of shots."""
        return {label: {str(k): of.at_shots(k) for k in self.shots} for label, of in self.methods.items()}
