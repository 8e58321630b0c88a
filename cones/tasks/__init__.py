"""The only door to tasks: what predictions are worth."""

from cones.tasks.classification import better, classification_metrics, mean_loss, quick_metrics

__all__ = ["better", "classification_metrics", "mean_loss", "quick_metrics"]
