"""Slices whose pixels are longer than wide: drawn with square ones, with their lesions, and put back."""

import nibabel
import numpy as np
import pytest
import torch

from cones.common.errors import DataError
from cones.data.masks import encode_mask, mask_bounds, object_mask
from cones.inference.volumes import PredictedVolume, label_map
from cones.inference.volumes_write import _line
from cones.readers.volumes.cut import Cut
from cones.readers.volumes.cutting import cut_of
from cones.readers.volumes.geometry import Grid, View, nearest, square_size
from cones.readers.volumes.lesions import lesions_of
from cones.readers.volumes.settings import Least, VolumeData
from cones.readers.volumes.shown import SmallLesions, objects_in, patches_of
from cones.readers.volumes.volume import FileVolume
from cones.readers.volumes.writer import told_of
from cones.tasks.detection.infer import Detections
from cones.tasks.detection.lesions import Found, FoundLesion

SPACING = (0.5, 1.0, 4.0)
SHAPE = (80, 50, 6)
MIDDLE, RADIUS = (20.0, 26.0, 12.0), 8.0
"""Of a ball, in mm from the middle of the first voxel."""


def ball() -> np.ndarray:
    places = np.stack(np.meshgrid(*[np.arange(n) * s for n, s in zip(SHAPE, SPACING)], indexing="ij"))
    return np.linalg.norm(places - np.array(MIDDLE)[:, None, None, None], axis=0) <= RADIUS


def opened(**more: object) -> tuple[VolumeData, FileVolume, Cut]:
    """A white ball in black; rows are j, of 1 mm, columns are i, of 0.5 mm, both from their ends."""
    affine = np.diag([*SPACING, 1.0])
    values = np.where(ball(), 100, 0).astype(np.int16)
    volume = FileVolume(nibabel.Nifti1Image(values, affine), Grid(SHAPE, affine), "it")
    settings = {"kind": "volumes", "source": ".", "window": {"level": 50, "width": 200}, **more}
    config = VolumeData.model_validate(settings)
    return config, volume, cut_of(config, volume, None, range(6), "it")


def test_pixels_are_squares_of_their_shorter_side() -> None:
    assert square_size((50, 80), (1.0, 0.5)) == (100, 80)
    assert square_size((50, 80), (0.5, 1.0)) == (50, 160)
    assert square_size((50, 80), (0.7, 0.7)) == (50, 80)
    assert square_size((500, 800), (0.7, 0.703)) == (500, 800), "nobody sees it"
    assert square_size((10, 10), (0.7, 5.0)) == (10, 71)


def test_what_is_made_larger_comes_back_as_it_was() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        size = (int(rng.integers(1, 40)), int(rng.integers(1, 40)))
        pixel = (float(rng.uniform(0.1, 4)), float(rng.uniform(0.1, 4)))
        picture = np.arange(size[0] * size[1]).reshape(size)
        larger = square_size(size, pixel)
        assert np.array_equal(nearest(nearest(picture, larger), size), picture)
        for of, to, mm in zip(size, larger, pixel):
            assert to == of or abs(to * min(pixel) - of * mm) <= min(pixel) / 2 + 1e-9


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_a_ball_is_round(axis: str) -> None:
    """In its picture and in its mask, in a slice through its middle."""
    _, volume, cut = opened(slices={"axis": axis})
    (lesion,) = lesions_of(ball().astype(np.uint8), {1: 0}, "it")
    at = round(MIDDLE[cut.view.axis] / SPACING[cut.view.axis])
    picture = cut.picture(volume, at)
    assert picture.shape == cut.size
    down, across = cut.pixel
    assert down == pytest.approx(across, rel=0.01)
    (found,) = objects_in([lesion], cut, volume.grid, at, Least(), SmallLesions())
    x1, y1, x2, y2 = found.box
    coarse = max(cut.stored)  # a voxel's edges do not end where the ball does
    assert (x2 - x1) * across == pytest.approx(2 * RADIUS, abs=coarse)
    assert (y2 - y1) * down == pytest.approx(2 * RADIUS, abs=coarse)
    mask = object_mask(found, cut.size)
    assert mask_bounds(mask) == (y1, x1, y2, x2)
    bright = picture > (int(picture.max()) + int(picture.min())) / 2
    assert (bright & mask).sum() / (bright | mask).sum() > 0.8
    assert mask.sum() * down * across == pytest.approx(np.pi * RADIUS**2, rel=0.2)


def test_the_least_size_is_that_of_the_pixels_that_there_are() -> None:
    """16 drawn pixels are 8 of 0.5 x 1 mm."""
    _, volume, cut = opened()
    label = np.zeros(SHAPE, np.uint8)
    label[10:14, 10:12, 2] = 1
    lesions = lesions_of(label, {1: 0}, "it")
    small = SmallLesions()
    assert objects_in(lesions, cut, volume.grid, 2, Least(mm2=0, pixels=9), small) == ()
    assert small.lines == ["it slice 2 lesion 1: 8 pixels, 4.0 mm2"]
    assert len(objects_in(lesions, cut, volume.grid, 2, Least(mm2=4, pixels=8), small)) == 1


def test_volumes_json_has_the_pixels_that_are_drawn() -> None:
    _, volume, cut = opened(crop=[5, 10, 20, 30])
    told = told_of(volume, cut, "g")
    assert told["box"] == (10, 10, 40, 50), "in the pixels of the slice"
    assert (told["pixel"], cut.size) == ((0.5, 0.5), (60, 40))


@pytest.mark.parametrize("crop", ["none", [4, 8, 28, 31]])
def test_a_patch_is_square_around_its_lesion(crop: object) -> None:
    config, volume, cut = opened(patch=24, crop=crop)
    (lesion,) = lesions_of(ball().astype(np.uint8), {1: 0}, "it")
    (patch,) = patches_of([lesion], cut.view, volume.grid, config, SmallLesions())
    pixels = patch.of(cut.picture(volume, patch.at), cut.box)
    assert pixels.shape == (48, 48)
    rows, columns = np.nonzero(pixels > (int(pixels.max()) + int(pixels[24, 0])) / 2)
    assert np.ptp(rows) == pytest.approx(np.ptp(columns), abs=2)
    assert np.ptp(columns) == pytest.approx(2 * RADIUS / 0.5, abs=2)
    assert (rows.min() + rows.max()) / 2 == pytest.approx(23.5, abs=1)
    assert (columns.min() + columns.max()) / 2 == pytest.approx(23.5, abs=1)


def detected(cut: Cut, box: tuple[float, float, float, float], mask: np.ndarray | None) -> Detections:
    regions = None if mask is None else (encode_mask(mask),)
    return Detections(torch.tensor([box]), torch.ones(1), ("a",), cut.size, regions)


@pytest.mark.parametrize("masks", [True, False])
def test_what_is_found_in_squares_is_told_in_voxels(masks: bool) -> None:
    """Rows 10 to 29 and columns 10 to 19 of a picture are j 5 to 14 and i 10 to 19, seen from their ends."""
    _, volume, cut = opened()
    mask = np.zeros(cut.size, bool)
    mask[10:30, 10:20] = True
    box = (10.0, 10.0, 20.0, 30.0)
    of_slice = [detected(cut, box, mask if masks else None) for _ in range(6)]
    lesion = FoundLesion("a", {at: Found(box, "a", 0.5, 0) for at in (2, 3)})
    found = PredictedVolume([lesion], of_slice, cut, volume, None, "RAS", {"a": 1})
    _, _, _, x, y, z, _, *voxels, slices, mm3 = _line(1, lesion, found)
    i, j = 80 - 20, 50 - 15
    assert voxels == [i, j, 2, i + 9, j + 9, 3]
    assert (x, y, z) == (round((i + 4.5) * 0.5, 2), j + 4.5, 2.5 * 4.0)
    assert (slices, mm3) == (2, 2 * 10 * 10 * 0.5 * 4.0)
    if masks:
        marked = np.argwhere(label_map(of_slice, cut, volume, {"a": 1}))
        assert [*marked.min(0), *marked.max(0)] == [i, j, 0, i + 9, j + 9, 5]


def test_a_box_of_less_than_a_voxel_is_one() -> None:
    """Of a coronal picture, in which a voxel is 8 rows high: rows 17 to 19 are within the third from the top."""
    _, volume, cut = opened(slices={"axis": "coronal"})
    assert cut.size == (48, 80)
    box = (10.0, 17.0, 20.0, 20.0)
    lesion = FoundLesion("a", {25: Found(box, "a", 0.5, 0)})
    found = PredictedVolume([lesion], [detected(cut, box, None)] * 50, cut, volume, None, "RAS", {"a": 1})
    _, _, _, _, _, z, _, *voxels, _, mm3 = _line(1, lesion, found)
    k = 6 - 1 - 2
    assert voxels == [60, 25, k, 69, 25, k]
    assert z == pytest.approx(k * 4.0, abs=2.0)
    assert mm3 == round(10 * 0.5 * 3 / 8 * 4.0 * 1.0, 1)


def test_pixels_of_a_hundred_times_their_width_are_refused() -> None:
    affine = np.diag([0.01, 1.0, 4.0, 1.0])
    volume = FileVolume(nibabel.Nifti1Image(np.zeros(SHAPE, np.int16), affine), Grid(SHAPE, affine), "it")
    config = VolumeData.model_validate({"kind": "volumes", "source": ".", "window": "soft"})
    with pytest.raises(DataError, match=r"it has pixels of 1 x 0.01 mm in its slices; .*put right its spacing"):
        cut_of(config, volume, None, range(6), "it")
    assert View.of(volume.grid, "axial").axis == 2
