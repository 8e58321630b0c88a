"""Dice and HD95 of volumes, beside hand-worked ones; MONAI takes its seconds to import, so they are by themselves."""

import numpy as np
import pytest
import torch

from cones.data.prepared import Record
from cones.interfaces.pictures import Instances
from cones.tasks.detection.overlap import overlap_of

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
