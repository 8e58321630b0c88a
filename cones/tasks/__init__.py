"""The only door to tasks: what predictions are worth."""

from cones.tasks.classification import better, classification_metrics, mean_loss, quick_metrics
from cones.tasks.pictures import captioned, contact_sheet

__all__ = ["better", "captioned", "classification_metrics", "contact_sheet", "mean_loss", "quick_metrics"]
