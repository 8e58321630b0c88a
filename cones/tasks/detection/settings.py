"""The settings of a concept of detection or segmentation."""

from typing import Literal

from pydantic import Field

from cones.tasks.settings import BaseConcept


class DetectionConcept(BaseConcept):
    """What is where in a picture: a box around each object, and its mask too where the task is segmentation."""

    task: Literal["detection", "segmentation"]
    shots: int | None = Field(ge=1, le=100_000)
    """Training pictures that show a class, drawn greedily until each class has them; null: all there are."""
    views: int = Field(2, ge=1, le=2)
    """Views of each training picture that are encoded once: the plain one, and with 2 its mirror image."""
    score_threshold: float = Field(0.3, ge=0, le=1)
    """Boxes below it are not drawn, and not predicted unless asked for; the metrics count them all."""
