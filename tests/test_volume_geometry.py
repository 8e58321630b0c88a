"""Grids, views and lesions of volumes: what is cut out comes back where it was."""

from itertools import product

import numpy as np
import pytest

from cones.common.errors import DataError
from cones.readers.volumes.geometry import Grid, View
from cones.readers.volumes.lesions import lesions_of, whole_labels

AXIAL = np.diag([-1.0, -1.0, 2.5, 1.0])
"""i to the patient's left, j to the back, k to the head: as an upright CT is."""


def turned(*axes: int, signs: tuple[int, int, int] = (1, 1, 1)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, axes] * np.array(signs) * (1.0, 2.0, 3.0)
    return affine


def oblique() -> np.ndarray:
    a, b = 0.4, 0.25
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_z * (0.7, 0.7, 3.0)
    affine[:3, 3] = (-30, 12, 400)
    return affine


AFFINES = {
    f"{axes}{signs}": turned(*axes, signs=signs)
    for axes in ((0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1))
    for signs in ((1, 1, 1), (-1, -1, 1), (-1, 1, -1))
} | {"oblique": oblique()}


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal", "acquired"])
@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_a_volume_put_back_slice_by_slice_is_the_same(affine: np.ndarray, axis) -> None:
    values = np.random.default_rng(0).integers(0, 9, (4, 5, 6))
    grid = Grid((4, 5, 6), affine)
    view, back = View.of(grid, axis), np.zeros_like(values)
    for at in range(values.shape[view.axis]):
        picture = view.picture(np.take(values, at, view.axis))
        assert picture.shape == view.size(grid)
        np.moveaxis(back, view.axis, 0)[at] = view.plane(picture)
    assert np.array_equal(back, values)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_left_is_on_the_right_and_the_front_on_top(affine: np.ndarray) -> None:
    """Of an axial slice, however the array runs: what is further left and back is further right and down."""
    grid = Grid((5, 5, 5), affine)
    view = View.of(grid, "axial")
    mark = np.zeros((5, 5, 5))
    places = np.array(list(product(range(5), repeat=3)))
    world = places @ affine[:3, :3].T
    left_back = places[np.argmax(-world[:, 0] - world[:, 1] - 100 * abs(places[:, view.axis] - 2))]
    mark[tuple(left_back)] = 1
    row, column = np.argwhere(view.picture(np.take(mark, 2, view.axis)))[0]
    assert (row, column) == (4, 4)


def test_the_head_is_on_top_of_a_coronal_and_a_sagittal_slice() -> None:
    values = np.zeros((3, 4, 5))
    values[1, 1, 4] = 1  # the head's end, as k runs to the head
    grid = Grid((3, 4, 5), AXIAL)
    for axis in ("coronal", "sagittal"):
        assert np.argwhere(View.of(grid, axis).picture(values[:, 1] if axis == "coronal" else values[1]))[0][0] == 0


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_acquired_slices_are_as_stored(affine: np.ndarray) -> None:
    values = np.random.default_rng(0).integers(0, 9, (4, 5, 6))
    view = View.of(Grid((4, 5, 6), affine), "acquired")
    assert view.axis == 2
    assert np.array_equal(view.picture(values[..., 3]), values[..., 3].T)


def test_strides_are_millimetres() -> None:
    grid = Grid((3, 3, 10), AXIAL)
    view = View.of(grid, "axial")
    assert view.strided(grid, None) == view.strided(grid, 2.0) == list(range(10))
    assert view.strided(grid, 5.0) == [0, 2, 4, 6, 8]
    assert view.strided(grid, 6.0) == [0, 2, 5, 7]


def test_grids_that_differ_are_told_apart_in_words() -> None:
    grid = Grid((3, 3, 3), AXIAL)
    shifted = AXIAL.copy()
    shifted[0, 3] = 0.02
    assert grid.difference(Grid((3, 3, 3), AXIAL + 1e-6)) == ""
    assert "0.02 mm away" in grid.difference(Grid((3, 3, 3), shifted))
    assert "3 x 3 x 4 voxels" in grid.difference(Grid((3, 3, 4), AXIAL))
    assert "mirrored" in grid.difference(Grid((3, 3, 3), AXIAL @ np.diag([-1.0, 1, 1, 1])))


def test_lesions_are_the_connected_parts_of_a_class() -> None:
    label = np.zeros((6, 6, 6), np.uint8)
    label[0, 0, 0] = label[1, 1, 1] = 1  # they touch at a corner
    label[4:, 4:, 0] = 1
    label[3, 3, 3:5] = 2
    found = lesions_of(label, {1: 0, 2: 1}, "it")
    assert [(one.number, one.label, one.corner, int(one.voxels.sum())) for one in found] == [
        (1, 0, (0, 0, 0), 2), (2, 0, (4, 4, 0), 4), (3, 1, (3, 3, 3), 2),
    ]  # fmt: skip
    assert found[2].areas(2).tolist() == [1, 1]
    assert list(found[2].span(2)) == [3, 4]


def test_with_values_each_value_is_a_lesion_whatever_its_parts() -> None:
    label = np.zeros((4, 4, 4), np.int16)
    label[0, 0, 0] = label[3, 3, 3] = 7
    label[1, 1, 1] = 2
    found = lesions_of(label, {2: 0, 7: 0}, "it", whole=True)
    assert [(one.label, int(one.voxels.sum())) for one in found] == [(0, 1), (0, 2)]


def test_a_value_without_a_class_and_a_fraction_are_refused() -> None:
    label = np.zeros((2, 2, 2), np.uint8)
    label[0, 0, 0] = 3
    with pytest.raises(DataError, match="it has the values 3, which `labels` does not name; it names 1"):
        lesions_of(label, {1: 0}, "it")
    with pytest.raises(DataError, match="it is no label map: it has values between whole numbers"):
        whole_labels(np.array([[[0.5]]], np.float32), "it")
    assert whole_labels(np.array([[[2.0]]], np.float32), "it").dtype.kind == "u"
    assert lesions_of(np.zeros((2, 2, 2), np.uint8), {1: 0}, "it") == []


def test_a_lesion_is_seen_where_it_is() -> None:
    label = np.zeros((5, 6, 7), np.uint8)
    label[1:3, 2:5, 3] = 1
    label[1, 2, 4] = 1
    (lesion,) = lesions_of(label, {1: 0}, "it")
    for axis in ("axial", "coronal", "sagittal"):
        grid = Grid((5, 6, 7), oblique())
        view = View.of(grid, axis)
        for at in lesion.span(view.axis):
            assert np.array_equal(
                lesion.part(view, at, view.size(grid)), view.picture(np.take(label, at, view.axis)) > 0
            )
