"""Intervals over draws of patients, and the free-response curve, beside hand-worked cases and slow ways."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score, roc_curve

from cones.common.files import write_json
from cones.data.prepared import Object, Record
from cones.interfaces.pictures import Instances
from cones.tasks.detection.froc import Marks, froc_curve, marks_of, sensitivity_at
from cones.tasks.detection.measure import lenient_metrics
from cones.tasks.intervals import (
    accuracy,
    auroc,
    balanced_accuracy,
    figure_of,
    mean_over,
    over_classes,
    patient_weights,
    sensitivity_at_specificity,
)
from cones.visuals import patients as visuals

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


def slow_sensitivity(positive: np.ndarray, scores: np.ndarray) -> float:
    false, true, _ = roc_curve(positive, scores, drop_intermediate=False)
    return float(true[1 - false >= 0.9 - 1e-12].max())


def test_auroc_weighs_pictures_as_scikit_learn_does() -> None:
    for draw in (0, 1, 7, 500):
        for c in range(3):
            slow = roc_auc_score(c == LABELS, SCORES[:, c], sample_weight=WEIGHTS[draw])
            assert auroc(WEIGHTS, SCORES[:, c], c == LABELS)[draw] == pytest.approx(slow, abs=1e-12)


def test_every_draw_is_what_the_slow_way_gives() -> None:
    right = SCORES.argmax(1) == LABELS
    fast = {
        "accuracy": accuracy(WEIGHTS, right),
        "balanced": balanced_accuracy(WEIGHTS, right, LABELS),
        "auroc": over_classes(lambda c: auroc(WEIGHTS, SCORES[:, c], c == LABELS), 3),
        "sensitivity": over_classes(lambda c: sensitivity_at_specificity(WEIGHTS, SCORES[:, c], c == LABELS, 0.9), 3),
    }
    for draw in (0, 1, 7, 500):
        labels, scores = repeated(LABELS, WEIGHTS[draw]), repeated(SCORES, WEIGHTS[draw])
        slow = {
            "accuracy": (scores.argmax(1) == labels).mean(),
            "balanced": balanced_accuracy_score(labels, scores.argmax(1)),
            "auroc": np.mean([roc_auc_score(labels == c, scores[:, c]) for c in range(3)]),
            "sensitivity": np.mean([slow_sensitivity(labels == c, scores[:, c]) for c in range(3)]),
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
    """Scores 0.9 (positive), 0.5 (positive), 0.5 (negative), 0.1 (negative): with no negative half is found, as the
    second positive comes with one of the two."""
    scores, positive = np.array([0.9, 0.5, 0.5, 0.1]), np.array([1, 1, 0, 0]) > 0
    found = [sensitivity_at_specificity(np.ones((1, 4)), scores, positive, least) for least in (1.0, 0.6, 0.5)]
    assert [value.tolist() for value in found] == [[0.5], [0.5], [1.0]]
    # of four pairs two are ordered, one is tied and one more ordered: (1 + 1 + 1 + 0.5) / 4
    assert auroc(np.ones((1, 4)), scores, positive).tolist() == [0.875]


def test_one_negative_of_ten_is_a_specificity_of_nine_tenths() -> None:
    """One of ten negatives scores above the second of two positives; 1 - 0.9 is a little less than a tenth."""
    scores, positive = np.array([0.9, 0.8, 0.7, *[0.1] * 9]), np.array([1, 0, 1, *[0] * 9]) > 0
    assert sensitivity_at_specificity(np.ones((1, 12)), scores, positive, 0.9).tolist() == [1.0]
    assert sensitivity_at_specificity(np.ones((1, 12)), scores, positive, 0.91).tolist() == [0.5]


def test_a_draw_of_one_class_has_no_sensitivity_at_a_specificity() -> None:
    weights = np.array([[1.0, 1, 1, 1], [2, 2, 0, 0], [0, 0, 2, 2]])
    scores, positive = np.array([0.9, 0.8, 0.2, 0.1]), np.array([1, 1, 0, 0]) > 0
    found = sensitivity_at_specificity(weights, scores, positive, 0.9)
    np.testing.assert_array_equal(found, [1.0, np.nan, np.nan])


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


def test_a_tie_of_a_hit_and_a_false_box_counts_both() -> None:
    """Two lesions of one volume, found at 0.9 and 0.5, the second by a box as sure as two false ones: 1.0 costs 2."""
    found = boxes((*A, 0.9), (*B, 0.5), (*FAR, 0.5), (*FAR, 0.5))
    marks = marks_of([found], [boxes(A, B)], [record("a", "v", 1, 2)])
    assert froc_curve(marks) == [(0.0, 0.5), (2.0, 1.0)]
    assert sensitivities(marks, 1, 2, 4) == [0.5, 1.0, 1.0]


def test_lesions_are_told_apart_by_volume_class_and_number() -> None:
    """Lesion 1 of class 0, lesion 1 of class 1 and lesion 1 of another volume are three; one is found."""
    truths = [boxes(A, B, labels=[0, 1]), boxes(A)]
    records = [record("a", "v", 1, 1, labels=[0, 1]), record("b", "w", 1)]
    marks = marks_of([boxes((*A, 0.9)), boxes()], truths, records)
    assert marks.lesions.tolist() == [2, 1]
    assert sensitivities(marks, 1) == [pytest.approx(1 / 3)]


def test_objects_without_a_number_are_lesions_of_their_own() -> None:
    """Each the first of its picture, in two slices of one volume, beside a numbered one."""
    own = [Record(n, -1, n, objects=(Object(0, A),), size=(20, 20), group="p", volume="v") for n in "ab"]
    records = [*own, record("c", "v", 0)]
    assert marks_of([boxes()] * 3, [boxes(A)] * 3, records).lesions.tolist() == [3]


def test_a_box_on_a_crowd_is_neither_found_nor_false() -> None:
    crowd = Record("a", -1, "a", objects=(Object(0, A, crowd=True, lesion=1), Object(0, B, lesion=2)), volume="v")
    marks = marks_of([boxes((*A, 0.9), (*B, 0.5))], [boxes(A, B)], [crowd])
    assert marks.lesions.tolist() == [1]
    assert sensitivities(marks, 0) == [1.0]


def test_a_draw_counts_lesions_and_false_boxes_as_often_as_their_volume() -> None:
    """v: one lesion, found at 0.8; w: one, missed, and false boxes at 0.9 and 0.7.
    v twice: 2 of 2 lesions, none false. Once each: at 0.8 one false of two volumes, 1 of 2. w twice: 0 of 2.
    v once, w three times: 3 false in four volumes at 0.8, 1 of 4 lesions."""
    predictions = [boxes((*A, 0.8)), boxes((*FAR, 0.9), (*FAR, 0.7))]
    marks = marks_of(predictions, [boxes(A), boxes(A)], [record("a", "v", 1), record("b", "w", 1)])
    weights = np.array([[2.0, 0], [1, 1], [0, 2], [1, 3]])
    assert sensitivity_at(marks, weights, 1).tolist() == [1.0, 0.5, 0.0, 0.25]
    assert sensitivity_at(marks, weights, 0.5).tolist() == [1.0, 0.5, 0.0, 0.0]


def many_marks() -> Marks:
    """50 volumes with 2,000 false boxes each and a lesion, found by a box surer than 0.9."""
    found, false = RNG.random(50) / 10 + 0.9, RNG.random(100_000)
    volumes = np.r_[np.arange(50), RNG.integers(0, 50, 100_000)]
    hits = np.arange(100_050) < 50
    return Marks(np.r_[found, false], hits, volumes, np.ones(50, int), tuple(map(str, range(50))))


def test_a_thousand_draws_of_a_hundred_thousand_boxes() -> None:
    marks = many_marks()
    weights = patient_weights(marks.groups)
    values = sensitivity_at(marks, weights, 4)
    within = sum(
        ((~marks.hits) & (marks.scores >= score)).sum() <= 4 * 50 for score in np.sort(marks.scores[marks.hits])
    )
    assert values[0] == within / 50


def test_a_curve_of_many_boxes_turns_where_lesions_are_found() -> None:
    curve = froc_curve(many_marks())
    assert len(curve) <= 2 * 50 + 2
    assert {y for _, y in curve} >= {n / 50 for n in range(1, 51)}
    assert curve == sorted(curve)
    assert curve[-1] == (2000.0, 1.0)


def test_a_curve_runs_level_until_a_lesion_is_found() -> None:
    """Three false boxes between two hits: their line is level and then steep, and not aslant."""
    found = boxes((*A, 0.9), (*FAR, 0.8), (*FAR, 0.7), (*FAR, 0.6), (*B, 0.5))
    assert froc_curve(marks_of([found], [boxes(A, B)], [record("a", "v", 1, 2)])) == [
        (0.0, 0.5),
        (3.0, 0.5),
        (3.0, 1.0),
    ]


def test_a_curve_is_drawn_up_to_the_edge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last lesion at 2 false positives, its next beyond the edge; and one that begins beyond it."""
    drawn: dict = {}
    monkeypatch.setattr(visuals, "line_chart", lambda lines, x, y: drawn.update(lines) or "<svg/>")
    curves = {"near": [(0.0, 0.5), (2.0, 0.75), (30.0, 1.0)], "far": [(20.0, 0.5)], "short": [(1.0, 0.5)]}
    told = {row: {"metrics": {}, "intervals": {}, "froc": points} for row, points in curves.items()}
    (tmp_path / "rows").mkdir()
    write_json(tmp_path / visuals.FILE, told)
    visuals.patient_parts(tmp_path, list(curves))
    assert drawn["near"] == ([0.0, 2.0, 8.0], [0.5, 0.75, 0.75])
    assert drawn["far"] == ([8.0], [0.0])
    assert drawn["short"] == ([1.0], [0.5])


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


def test_lenient_ap_of_masks_is_that_of_masks() -> None:
    """Two objects; one is found by a box of its place whose mask has 2 of its 10 rows: 0.2. COCO asks the precision at
    101 recalls, and 51 of them, 0 to 0.5, are reached: 51 / 101."""
    apart = (12.0, 12.0, 18.0, 18.0)
    truth, found = boxes(A, apart), boxes((*A, 0.9))
    whole, part = torch.zeros(2, 20, 20, dtype=torch.bool), torch.zeros(1, 20, 20, dtype=torch.bool)
    whole[0, :10, :10], whole[1, 12:18, 12:18], part[0, :2, :10] = True, True, True
    told = lenient_metrics([replace(found, masks=part)], [replace(truth, masks=whole)], [(20, 20)], ["a"], masks=True)
    half = round(51 / 101, 6)
    assert told == {"box_ap10": half, "box_ap30": half, "mask_ap10": half, "mask_ap30": 0.0}
