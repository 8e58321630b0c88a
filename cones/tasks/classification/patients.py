"""What a classification is worth for patients: what a screening asks, with intervals over draws of patients."""

from collections.abc import Sequence

import numpy as np
import torch

from cones.concept.card import ConceptCard
from cones.data.prepared import Split
from cones.features.store import FeatureStore
from cones.interfaces.pictures import Predictions
from cones.tasks.intervals import (
    accuracy,
    auroc,
    balanced_accuracy,
    figures_of,
    over_classes,
    patient_weights,
    sensitivity_at_specificity,
)
from cones.tasks.task import OfPatients

SPECIFICITY = 0.9


def of_patients(predictions: Sequence[Predictions], store: FeatureStore, split: Split, card: ConceptCard) -> OfPatients:
    """Accuracy, balanced accuracy, AUROC and the sensitivity at a specificity of 0.9, the last two one class against
    the rest, meant over the classes; with intervals where there are two patients or more."""
    scores = torch.cat([p.scores for p in predictions]).double().numpy()
    labels = store.labels.numpy()
    weights = patient_weights([record.group or record.id for record in split.records])
    right, classes = scores.argmax(1) == labels, scores.shape[1]

    def sensitivity(label: int) -> np.ndarray:
        return sensitivity_at_specificity(weights, scores[:, label], labels == label, SPECIFICITY)

    found = {
        "accuracy": accuracy(weights, right),
        "balanced_accuracy": balanced_accuracy(weights, right, labels),
        "auroc": over_classes(lambda label: auroc(weights, scores[:, label], labels == label), classes),
        "sensitivity_at_90_specificity": over_classes(sensitivity, classes),
    }
    return OfPatients(*figures_of(found))
