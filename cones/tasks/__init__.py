"""The only door to tasks: what predictions are worth."""

from cones.tasks.classification import better, classification_metrics, mean_loss, quick_metrics
from cones.tasks.pictures import contact_sheet

__all__ = ["better", "classification_metrics", "contact_sheet", "mean_loss", "quick_metrics"]
