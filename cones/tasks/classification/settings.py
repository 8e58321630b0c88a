"""The settings of a concept of classification."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from cones.tasks.settings import BaseConcept, Template

if TYPE_CHECKING:
    from cones.concept.card import ConceptCard

RANKED_BY = {"classification": (("accuracy", 1), ("loss", -1))}


class ClassificationConcept(BaseConcept):
    """What a whole picture shows."""

    task: Literal["classification"]
    shots: int = Field(ge=1, le=100_000)
    """Training pictures a class. Draws are nested: the pictures of 4 shots are among those of 16."""
    views: int = Field(8, ge=1, le=256)
    """Views of each training picture that are encoded once: the plain one and random crops and flips."""
    min_crop: float = Field(0.5, gt=0, le=1)
    """Smallest share of a picture's area that a random view keeps (CoOp's own is 0.08)."""
    templates: Annotated[list[Template], Field(min_length=1)] | None = None
    """Sentences a class name is put into; their text embeddings are averaged. None: the data set's own, where its
    layout has one, else "a photo of a {}."."""

    def against(self, card: "ConceptCard", own: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        have, asked = super().against(card, own)
        asked["shots"], have["shots"] = self.shots, card.shots
        if self.templates:
            asked["templates"], have["templates"] = list(self.templates), card.templates
        return have, asked
