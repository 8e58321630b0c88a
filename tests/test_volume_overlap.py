"""Dice and HD95 of volumes, beside hand-worked ones; MONAI takes its seconds to import, so they are by themselves."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cards import card
from scipy import ndimage

from cones.common.files import write_json
from cones.data.prepared import Object, Record, Split
from cones.interfaces.pictures import Instances, Predictions
from cones.tasks.detection.overlap import overlap_of
from cones.tasks.detection.patients import of_patients

SIZE = (8, 9)


def instances(*masks: tuple[int, slice, slice, float | None]) -> Instances:
    """Each a class, rows, columns and a score; None for truth."""
    found = torch.zeros(len(masks), *SIZE, dtype=torch.bool)
    for i, (_, rows, columns, _) in enumerate(masks):
        found[i, rows, columns] = True
    scores = None if any(m[3] is None for m in masks) else torch.tensor([m[3] for m in masks], dtype=torch.float32)
    labels = torch.tensor([m[0] for m in masks], dtype=torch.long)
    return Instances(torch.zeros(len(masks), 4), labels, found, scores)


def records(*slices: tuple[str, int]) -> list[Record]:
    return [Record(f"{v}-{at}", -1, f"{v}{at}", size=SIZE, volume=v, slice=at) for v, at in slices]


VOLUME = {"step": 2.0, "pixel": [0.5, 3.0], "group": "p"}
HERE = (0, slice(2, 4), slice(2, 4), None)


def test_boxes_at_a_known_distance() -> None:
    """2 x 2 pixels against the same a column further, of 3 mm: 2 of 4 shared; each border is at most 3 mm away."""
    moved = (0, slice(2, 4), slice(3, 5), 0.9)
    over = overlap_of([instances(moved)], [instances(HERE)], records(("v", 0)), {"v": VOLUME}, 1, 0.5)
    assert over.dice.tolist() == [[0.5]]
    assert over.hd95[0, 0] == pytest.approx(3.0)


def test_slices_are_as_far_apart_as_their_volume_says() -> None:
    """The truth in the slices 0 and 4, the prediction in 0 alone; slices are 4 places of 2 mm apart: 8 mm."""
    found = [instances((0, slice(2, 4), slice(2, 4), 0.9)), instances()]
    over = overlap_of(found, [instances(HERE), instances(HERE)], records(("v", 0), ("v", 4)), {"v": VOLUME}, 1, 0.5)
    assert over.dice[0, 0] == pytest.approx(2 * 4 / 12)
    assert over.hd95[0, 0] == pytest.approx(8.0)


def test_slices_at_uneven_gaps_are_where_they_are() -> None:
    """The truth in the slices 0, 1 and 5, the prediction in 0 and 1: what lacks is 4 places of 2 mm away."""
    there = (0, slice(2, 4), slice(2, 4), 0.9)
    found, truths = [instances(there), instances(there), instances()], [instances(HERE)] * 3
    over = overlap_of(found, truths, records(("v", 0), ("v", 1), ("v", 5)), {"v": VOLUME}, 1, 0.5)
    assert over.hd95[0, 0] == pytest.approx(8.0)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of an argument that MONAI passes itself
@pytest.mark.parametrize("gap", [1, 3])
def test_at_even_gaps_the_distance_is_what_monai_has_for_the_whole(gap: int) -> None:
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance

    rng = np.random.default_rng(0)
    masks = ndimage.binary_dilation(rng.random((2, 6, *SIZE)) > 0.97, np.ones((1, 1, 2, 2)))
    found, truths = (
        [Instances(torch.zeros(1, 4), torch.zeros(1, dtype=torch.long), torch.from_numpy(mask)[None]) for mask in of]
        for of in masks
    )
    over = overlap_of(found, truths, records(*(("v", gap * k) for k in range(6))), {"v": VOLUME}, 1, 0.0)
    whole = torch.from_numpy(masks)[:, None, None]
    told = compute_hausdorff_distance(*whole, include_background=True, percentile=95, spacing=[2.0 * gap, 0.5, 3.0])
    assert over.hd95[0, 0] == pytest.approx(float(told))


def test_what_is_empty_is_told_and_not_lost() -> None:
    """Class 0: both there; 1: nothing to find and nothing found; 2: missed; 3: found where nothing is."""
    here = (slice(2, 4), slice(2, 4))
    found = instances((0, *here, 0.9), (3, *here, 0.9), (2, *here, 0.1))
    truth = instances((0, *here, None), (2, *here, None))
    over = overlap_of([found], [truth], records(("v", 0)), {"v": VOLUME}, 4, 0.5)
    np.testing.assert_array_equal(over.dice, [[1.0, np.nan, 0.0, 0.0]])
    np.testing.assert_array_equal(over.hd95, [[0.0, np.nan, np.nan, np.nan]])
    assert over.true.tolist() == [[True, False, True, False]]
    assert over.predicted.tolist() == [[True, False, False, True]]


def test_volumes_are_kept_apart_and_an_unseen_one_has_no_value() -> None:
    found = [instances((0, slice(2, 4), slice(2, 4), 0.9)), instances()]
    truths = [instances(HERE), instances(HERE)]
    order = {"w": VOLUME, "v": VOLUME, "x": VOLUME}
    over = overlap_of(found, truths, records(("v", 0), ("w", 0)), order, 1, 0.5)
    np.testing.assert_array_equal(over.dice, [[0.0], [1.0], [np.nan]])


def test_hd95_is_the_larger_of_both_ways_and_leaves_out_a_twentieth() -> None:
    """The truth is 1 x 4 pixels of 3 mm across, the prediction the first of them. From the prediction all are 0 away;
    from the truth 0, 3, 6, 9 mm, of which the 95th percentile, at 0.95 * 3 = 2.85 of the order, is 6 + 0.85 * 3."""
    found, truth = (0, slice(2, 3), slice(2, 3), 0.9), (0, slice(2, 3), slice(2, 6), None)
    for a, b in ((found, truth), ((*truth[:3], 0.9), (*found[:3], None))):
        over = overlap_of([instances(a)], [instances(b)], records(("v", 0)), {"v": VOLUME}, 1, 0.5)
        assert over.hd95[0, 0] == pytest.approx(8.55)
        assert over.dice[0, 0] == pytest.approx(2 * 1 / 5)


def test_rows_and_columns_have_their_own_spacing() -> None:
    """One pixel, two rows of 0.5 mm below or two columns of 3 mm beside its truth."""
    truth = (0, slice(2, 3), slice(2, 3), None)
    for rows, columns, far in ((slice(4, 5), slice(2, 3), 1.0), (slice(2, 3), slice(4, 5), 6.0)):
        found = instances((0, rows, columns, 0.9))
        over = overlap_of([found], [instances(truth)], records(("v", 0)), {"v": VOLUME}, 1, 0.5)
        assert over.hd95[0, 0] == pytest.approx(far)


def test_masks_at_the_border_and_several_of_one_class_are_one() -> None:
    """Two masks of a class that overlap, at the edge of the picture, are their union."""
    found = instances((0, slice(0, 2), slice(0, 2), 0.9), (0, slice(0, 2), slice(1, 3), 0.8))
    truth = instances((0, slice(0, 2), slice(0, 3), None))
    over = overlap_of([found], [truth], records(("v", 0)), {"v": VOLUME}, 1, 0.5)
    assert (over.dice.tolist(), over.hd95.tolist()) == ([[1.0]], [[0.0]])


def test_volumes_that_figures_leave_out_are_counted_by_class(tmp_path: Path) -> None:
    """Class 0 is found in v and missed in w; class 1 is invented in v and neither there nor found in w.
    Dice: v (1 + 0) / 2, w 0, mean 0.25; HD95 of v alone, 0."""
    here = (slice(2, 4), slice(2, 4))
    found = (instances((0, *here, 0.9), (1, *here, 0.9)), replace(instances(), scores=torch.zeros(0)))
    truths = [instances((0, *here, None)), instances((0, *here, None))]
    shown = (Object(0, (0.0, 0.0, 0.0, 0.0), lesion=1),)
    told = tuple(replace(one, objects=shown) for one in records(("v", 0), ("w", 0)))
    write_json(tmp_path / "volumes.json", {"v": VOLUME, "w": VOLUME | {"group": "q"}})
    store: Any = SimpleNamespace(truths=truths, sizes=[SIZE, SIZE])
    predictions, split = [Predictions(torch.zeros(2, 2), found)], Split(tmp_path, ("a", "b"), told)
    of = of_patients(predictions, store, split, card("glip", score_threshold=0.5))
    assert {name: value for name, value in of.metrics.items() if name.startswith("volumes_")} == {
        "volumes_without_lesion": 2.0,
        "volumes_without_prediction": 2.0,
        "volumes_without_either": 1.0,
    }
    assert (of.metrics["dice"], of.metrics["hd95_mm"]) == (0.25, 0.0)
    assert of.intervals["dice"] == (0.0, 0.5)
