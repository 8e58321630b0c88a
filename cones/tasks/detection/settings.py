"""The settings of a concept of detection or segmentation."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from cones.tasks.settings import BaseConcept

if TYPE_CHECKING:
    from cones.concept.card import ConceptCard

RANKED_BY = {
    "detection": (("box_ap", 1), ("box_ap50", 1), ("mask_ap", 1)),
    "segmentation": (("mask_ap", 1), ("box_ap", 1)),
}
"""A row of detection has a mask AP where it was given a mask head, and is better than its equal without."""


class DetectionConcept(BaseConcept):
    """What is where in a picture: a box around each object, and its mask too where the task is segmentation."""

    task: Literal["detection", "segmentation"]
    shots: int | None = Field(ge=1, le=100_000)
    """Training pictures that show a class, drawn greedily until each class has them; null: all there are."""
    views: int = Field(2, ge=1, le=2)
    """Views of each training picture that are encoded once: the plain one, and with 2 its mirror image."""
    score_threshold: float = Field(0.3, ge=0, le=1)
    """Boxes below it are not drawn, and not predicted unless asked for; the metrics count them all."""

    def against(self, card: "ConceptCard", own: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        have, asked = super().against(card, own)
        asked |= {"shots": self.shots, "score_threshold": self.score_threshold}
        return have | {"shots": card.shots, "score_threshold": card.score_threshold}, asked
