"""What detection is worth for patients: lesions found at some false positives, lenient AP, and overlap of volumes."""

from collections.abc import Sequence

import numpy as np

from cones.common.files import read_json
from cones.concept.card import ConceptCard
from cones.data.prepared import VOLUMES, Split
from cones.features.store import FeatureStore
from cones.interfaces.pictures import Instances, Predictions
from cones.tasks.detection.froc import RATES, froc_curve, marks_of, sensitivity_at
from cones.tasks.detection.measure import lenient_metrics
from cones.tasks.detection.overlap import overlap_of
from cones.tasks.intervals import PerDraw, figures_of, mean_over, patient_weights
from cones.tasks.task import OfPatients


def of_patients(predictions: Sequence[Predictions], store: FeatureStore, split: Split, card: ConceptCard) -> OfPatients:
    """Figures over lesions, volumes and patients, with intervals over draws of patients where there are two or more."""
    found, masks = [one for p in predictions for one in p.instances or ()], card.task == "segmentation"
    marks = marks_of(found, store.truths, split.records)
    weights = patient_weights(marks.groups)
    metrics = lenient_metrics(found, store.truths, store.sizes, split.classes, masks)
    draws = {f"sensitivity_at_{rate}fp": sensitivity_at(marks, weights, rate) for rate in RATES}
    if masks and (split.folder / VOLUMES).exists():
        counts, overlap = _overlap(found, store.truths, split, card.score_threshold or 0.0)
        metrics |= counts
        draws |= overlap
    figures, intervals = figures_of(draws)
    return OfPatients(metrics | figures, intervals, froc_curve(marks))


def _overlap(
    predictions: Sequence[Instances], truths: Sequence[Instances], split: Split, threshold: float
) -> tuple[dict[str, float], dict[str, PerDraw]]:
    """For how many volumes there is nothing to find, nothing found or neither, each class of each counted; and Dice and
    HD95 over volumes: Dice leaves out those with neither, HD95 those without one or the other."""
    volumes = read_json(split.folder / VOLUMES, dict[str, dict])
    over = overlap_of(predictions, truths, split.records, volumes, len(split.classes), threshold)
    weights = patient_weights([str(of["group"]) for of in volumes.values()])
    without = {"lesion": ~over.true, "prediction": ~over.predicted, "either": ~over.true & ~over.predicted}
    counts = {f"volumes_without_{what}": of for what, of in without.items()}
    draws = {}
    for name, of in (("dice", over.dice), ("hd95_mm", over.hd95)):
        there = np.isfinite(of)
        per_volume = np.where(there.any(1), np.where(there, of, 0).sum(1) / np.maximum(there.sum(1), 1), np.nan)
        draws[name] = mean_over(weights, per_volume)
    return {name: float(of.sum()) for name, of in counts.items()}, draws
