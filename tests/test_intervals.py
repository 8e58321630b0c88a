"""Intervals over draws of patients, and the free-response curve, beside hand-worked cases and slow ways."""

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from cones.data.prepared import Object, Record
from cones.interfaces.pictures import Instances
from cones.tasks.detection.froc import froc_curve, marks_of, sensitivity_at
from cones.tasks.detection.measure import lenient_metrics
from cones.tasks.intervals import (
    accuracy,
    auroc,
    balanced_accuracy,
    best_within,
    figure_of,
    mean_over,
    over_classes,
    patient_weights,
)

RNG = np.random.default_rng(0)
LABELS, SCORES = RNG.integers(0, 3, 60), RNG.random((60, 3)).round(1)
"""Rounded, so that many scores are tied."""
GROUPS = [f"p{i}" for i in RNG.integers(0, 9, 60)]
WEIGHTS = patient_weights(GROUPS)


def test_each_draw_has_as_many_patients_as_there_are() -> None:
    assert WEIGHTS.shape == (1001, 60)
    assert (WEIGHTS[0] == 1).all()
    sizes = {name: GROUPS.count(name) for name in set(GROUPS)}
    for row in WEIGHTS[1:20]:
        of_group = {name: {row[i] for i, g in enumerate(GROUPS) if g == name} for name in sizes}
        assert all(len(values) == 1 for values in of_group.values())
        assert sum(values.pop() for values in of_group.values()) == len(sizes)
    assert np.array_equal(patient_weights(GROUPS), WEIGHTS)
    assert patient_weights(["a", "a"]).shape == (1, 2)


def repeated(values: np.ndarray, row: np.ndarray) -> np.ndarray:
    return np.repeat(values, row.astype(int), axis=0)


def test_every_draw_is_what_the_slow_way_gives() -> None:
    right = SCORES.argmax(1) == LABELS
    fast = {
        "accuracy": accuracy(WEIGHTS, right),
        "balanced": balanced_accuracy(WEIGHTS, right, LABELS),
        "auroc": over_classes(lambda c: auroc(WEIGHTS, SCORES[:, c], c == LABELS), 3),
    }
    for draw in (0, 1, 7, 500):
        labels, scores = repeated(LABELS, WEIGHTS[draw]), repeated(SCORES, WEIGHTS[draw])
        slow = {
            "accuracy": (scores.argmax(1) == labels).mean(),
            "balanced": balanced_accuracy_score(labels, scores.argmax(1)),
            "auroc": np.mean([roc_auc_score(labels == c, scores[:, c]) for c in range(3)]),
        }
        for name, values in fast.items():
            assert values[draw] == pytest.approx(slow[name], abs=1e-12)


def test_a_class_that_a_draw_lacks_has_no_part_in_its_mean() -> None:
    weights = np.array([[1.0, 1, 1, 1], [2, 2, 0, 0]])
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.9, 0.1, 0.8, 0.2])
    assert balanced_accuracy(weights, np.array([1, 0, 1, 1]) > 0, labels).tolist() == [0.75, 0.5]
    assert np.isnan(auroc(weights, scores, labels == 1)[1])
    assert figure_of(np.array([0.5, np.nan])) == (0.5, None)


def test_ties_pass_a_threshold_together() -> None:
    """Scores 0.9 (positive), 0.5 (positive), 0.5 (negative), 0.1 (negative): at no false positive half is found, as the
    second positive comes with a negative."""
    scores, positive = np.array([0.9, 0.5, 0.5, 0.1]), np.array([1.0, 1, 0, 0])
    ones = np.ones((1, 4))
    found = [
        best_within(ones, scores, positive, 1 - positive, np.array([2.0]), np.array([2.0]), m) for m in (0, 0.4, 0.5)
    ]
    assert [value.tolist() for value in found] == [[0.5], [0.5], [1.0]]
    # of four pairs two are ordered, one is tied and one more ordered: (1 + 1 + 1 + 0.5) / 4
    assert auroc(ones, scores, positive > 0).tolist() == [0.875]


def test_means_leave_out_what_has_no_value() -> None:
    assert mean_over(np.ones((1, 3)), np.array([1.0, np.nan, 0.0])).tolist() == [0.5]
    assert np.isnan(mean_over(np.ones((1, 1)), np.array([np.nan]))[0])


def test_a_thousand_draws_of_two_thousand_pictures_are_quick() -> None:
    weights = patient_weights([str(i) for i in range(2000)])
    scores, labels = RNG.random(2000), RNG.integers(0, 2, 2000)
    found = auroc(weights, scores, labels == 1)
    assert len(found) == 1001
    assert found[1:].std() == pytest.approx(np.sqrt(1 / 12 * 4 / 2000), rel=0.2)


def boxes(*of: tuple[float, ...], labels: list[int] | None = None) -> Instances:
    """(x1, y1, x2, y2, score) each; without scores it is truth."""
    given = torch.tensor(of, dtype=torch.float32).reshape(len(of), -1 if of else 5)
    classes = torch.tensor(labels if labels is not None else [0] * len(of), dtype=torch.long)
    return Instances(given[:, :4], classes, scores=given[:, 4] if given.shape[1] == 5 else None)


def record(
    name: str, volume: str | None, *lesions: int, group: str | None = None, labels: list[int] | None = None
) -> Record:
    kinds = labels or [0] * len(lesions)
    objects = tuple(Object(k, (0.0, 0.0, 1.0, 1.0), lesion=n) for k, n in zip(kinds, lesions))
    return Record(name, -1, name, objects=objects, size=(20, 20), group=group or volume, volume=volume)


A, B, FAR = (0.0, 0.0, 10.0, 10.0), (12.0, 12.0, 18.0, 18.0), (50.0, 50.0, 60.0, 60.0)


def sensitivities(marks, *rates: float) -> list[float]:
    return [float(sensitivity_at(marks, np.ones((1, len(marks.lesions))), rate)[0]) for rate in rates]


def test_a_lesion_over_many_slices_counts_once_at_its_surest_box() -> None:
    """Two volumes. In v the lesion 1 is in two slices, found at 0.4 and 0.7; a box beside it is false at 0.6. w has a
    lesion that nothing finds, and a false box at 0.9. Two lesions, two volumes:
    at 0.9 one false (0.5 a volume), none found; at 0.7 one found: 0.5 at 0.5; at 0.6 two false: 0.5 at 1.0."""
    predictions = [boxes((*A, 0.4)), boxes((*A, 0.7), (*FAR, 0.6)), boxes((*FAR, 0.9))]
    truths = [boxes(A), boxes(A), boxes(B)]
    records = [record("a", "v", 1), record("b", "v", 1), record("c", "w", 1)]
    marks = marks_of(predictions, truths, records)
    assert marks.lesions.tolist() == [1, 1]
    assert sorted(zip(marks.scores.round(6).tolist(), marks.hits.tolist())) == [(0.6, False), (0.7, True), (0.9, False)]
    assert froc_curve(marks) == [(0.5, 0.0), (0.5, 0.5), (1.0, 0.5)]
    assert sensitivities(marks, 0.4, 0.5, 1, 4) == [0.0, 0.5, 0.5, 0.5]


def test_the_lowest_score_counts_too() -> None:
    marks = marks_of([boxes((*A, 0.0))], [boxes(A)], [record("a", "v", 1)])
    assert sensitivities(marks, 0) == [1.0]
    assert froc_curve(marks) == [(0.0, 1.0)]


def test_no_lesion_has_no_value_and_no_box_finds_nothing() -> None:
    none = marks_of([boxes((*A, 0.5))], [boxes()], [record("a", "v")])
    assert np.isnan(sensitivities(none, 1)[0])
    assert froc_curve(none) == []
    assert sensitivities(marks_of([boxes()], [boxes(A)], [record("a", "v", 1)]), 1) == [0.0]


def test_a_volume_without_a_lesion_dilutes_false_positives() -> None:
    """Three false boxes above the hit: over one volume 3 a volume, over three volumes 1."""
    predictions = [boxes((*FAR, 0.9), (*FAR, 0.8), (*FAR, 0.7), (*A, 0.6)), boxes(), boxes()]
    truths, records = [boxes(A), boxes(), boxes()], [record("a", "v", 1), record("b", "w"), record("c", "x")]
    assert sensitivities(marks_of(predictions[:1], truths[:1], records[:1]), 1, 2, 4) == [0.0, 0.0, 1.0]
    assert sensitivities(marks_of(predictions, truths, records), 1) == [1.0]


def test_a_box_finds_by_its_centre_or_by_a_tenth_of_overlap_and_its_class_alone() -> None:
    small, beside = (4.0, 4.0, 6.0, 6.0), (8.0, 0.0, 18.0, 10.0)
    # `beside` has its centre outside and shares 2 x 10 of 180: 0.111
    for box in (small, beside):
        assert sensitivities(marks_of([boxes((*box, 0.5))], [boxes(A)], [record("a", "v", 1)]), 0) == [1.0]
    apart = (9.0, 0.0, 19.0, 10.0)  # 10 of 190: 0.053
    assert sensitivities(marks_of([boxes((*apart, 0.5))], [boxes(A)], [record("a", "v", 1)]), 4) == [0.0]
    other = marks_of([boxes((*A, 0.5), labels=[1])], [boxes(A)], [record("a", "v", 1)])
    assert sensitivities(other, 0, 1) == [0.0, 0.0]


def test_more_boxes_on_a_lesion_are_neither_found_nor_false() -> None:
    marks = marks_of([boxes((*A, 0.9), (*A, 0.8), (*A, 0.7))], [boxes(A)], [record("a", "v", 1)])
    assert marks.hits.tolist() == [True]


def test_pictures_without_volumes_are_volumes_of_their_own() -> None:
    records = [Record(n, -1, n, objects=(Object(0, A),), size=(20, 20), group="p") for n in "ab"]
    marks = marks_of([boxes((*A, 0.9)), boxes((*FAR, 0.9))], [boxes(A), boxes(A)], records)
    assert marks.lesions.tolist() == [1, 1]
    assert marks.groups == ("p", "p")
    assert sensitivities(marks, 0.5) == [0.5]


def test_draws_of_patients_move_the_sensitivity() -> None:
    """Two patients, one with a found lesion, one with a missed one: a draw has none, half or all of it."""
    records = [record("a", "v", 1), record("b", "w", 1)]
    marks = marks_of([boxes((*A, 0.9)), boxes()], [boxes(A), boxes(A)], records)
    values = sensitivity_at(marks, patient_weights(marks.groups), 1)
    assert values[0] == 0.5
    assert set(values[1:].tolist()) == {0.0, 0.5, 1.0}
    assert figure_of(values) == (0.5, (0.0, 1.0))


def test_lenient_ap_takes_what_a_strict_one_leaves() -> None:
    """A box that shares 0.25 with its object: right at 0.1, wrong at 0.3."""
    truth, found = boxes((0.0, 0.0, 10.0, 10.0)), boxes((0.0, 6.0, 10.0, 16.0, 0.9))  # 40 / 160
    assert lenient_metrics([found], [truth], [(20, 20)], ["a"], masks=False) == {"box_ap10": 1.0, "box_ap30": 0.0}
