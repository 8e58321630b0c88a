"""NRRD files: real and made ones, read as pynrrd reads them, turned into NIfTI's space, or refused in words."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cones.common.errors import DataError
from cones.data.identity import Pseudonyms
from cones.readers.volumes.settings import VolumeData
from cones.readers.volumes.volume import open_file, stem
from cones.readers.volumes.write import write_volumes

nrrd = pytest.importorskip("nrrd")
REAL = Path(__file__).parent.parent.parent / "shared/data/nrrd_lesions"
real = pytest.mark.skipif(not REAL.is_dir(), reason="the real data is not here")
SPACING = {"brain1": (0.78125, 0.78125, 6.5), "brain2": (0.78125, 0.78125, 6.5), "breast1": (0.664062, 0.664062, 2.1)}
SIZES = {"brain1": (256, 256, 25), "brain2": (256, 256, 23), "breast1": (45, 120, 21)}
VALUES = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
HEADER: dict[str, Any] = {
    "space": "left-posterior-superior", "space directions": np.diag([2.0, 3.0, 4.0]), "space origin": [10.0, 20.0, 30.0]
}  # fmt: skip


def shown(path: Path) -> str:
    return path.name


def write(path: Path, values: np.ndarray = VALUES, **header: Any) -> Path:
    of = {key.replace("_", " "): value for key, value in header.items()}
    nrrd.write(str(path), values, {k: v for k, v in (HEADER | of).items() if v is not None})
    return path


@real
@pytest.mark.parametrize("name", SIZES)
def test_real_files_are_what_pynrrd_reads_and_their_labels_lie_on_them(name: str) -> None:
    array, header = nrrd.read(str(REAL / f"{name}_image.nrrd"))
    volume = open_file(REAL / f"{name}_image.nrrd", shown)
    assert volume.grid.shape == SIZES[name] == array.shape
    assert np.array_equal(volume.array, array)
    assert volume.array.dtype == array.dtype
    assert np.array_equal(volume.plane(2, 7), array[:, :, 7])
    np.testing.assert_allclose(volume.grid.spacing, SPACING[name], rtol=1e-4)
    x, y, z = header["space origin"]
    np.testing.assert_allclose(volume.grid.affine[:3, 3], (-x, -y, z))
    label = open_file(REAL / f"{name}_label.nrrd", shown)
    assert volume.grid.difference(label.grid) == ""
    assert set(np.unique(label.array)) == {0, 1}


@real
def test_real_files_become_pictures_in_the_layout_of_nnunet(tmp_path: Path) -> None:
    for name in SIZES:
        for kind, file in (("image", f"imagesTr/{name}_0000.nrrd"), ("label", f"labelsTr/{name}.nrrd")):
            (tmp_path / file).parent.mkdir(exist_ok=True)
            shutil.copy(REAL / f"{name}_{kind}.nrrd", tmp_path / file)
    config = VolumeData(kind="volumes", source=str(tmp_path), labels={1: "lesion"}, window="percentile")
    _, records, report = write_volumes(config, tmp_path / "out", Pseudonyms(b"salt"))
    assert report["volumes"] == {"train": 1, "val": 1, "test": 1}
    assert all(any(record.objects for record in of) for of in records.values())


@pytest.mark.parametrize(
    ("space", "signs"),
    [("left-posterior-superior", (-1, -1, 1)), ("RAS", (1, 1, 1)), ("left-anterior-superior", (-1, 1, 1))],
)
def test_each_space_is_turned_into_that_of_nifti(tmp_path: Path, space: str, signs: tuple[int, int, int]) -> None:
    volume = open_file(write(tmp_path / "a.nrrd", space=space), shown)
    assert (volume.grid.affine @ [1, 1, 1, 1])[:3].tolist() == [12 * signs[0], 23 * signs[1], 34 * signs[2]]
    assert np.array_equal(volume.array, VALUES)


def test_an_axis_that_is_none_of_space_has_its_volumes(tmp_path: Path) -> None:
    several = np.stack([VALUES, VALUES + 1000])
    ways = np.vstack([[np.nan] * 3, np.diag([2.0, 3.0, 4.0])])
    path = write(tmp_path / "a.seg.nrrd", several, space_directions=ways, kinds=["list", "domain", "domain", "domain"])
    assert np.array_equal(open_file(path, shown, 1).array, VALUES + 1000)
    assert stem(path) == "a"
    with pytest.raises(DataError, match=r"holds 2 volumes; say with `volume_index` which is meant, 0 to 1"):
        open_file(path, shown)


def test_values_may_lie_in_one_file_beside_the_header(tmp_path: Path) -> None:
    assert np.array_equal(open_file(write(tmp_path / "a.nhdr"), shown).array, VALUES)


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ({"space": None, "space_directions": None, "space_origin": None}, "does not say where its voxels are"),
        ({"space": "scanner-xyz"}, r"\(space: scanner-xyz, space directions: there\)"),
        ({"space_directions": np.zeros((3, 3))}, "does not say where its voxels are"),
    ],
)
def test_files_without_a_place_are_refused(tmp_path: Path, header: dict, told: str) -> None:
    with pytest.raises(DataError, match=told):
        open_file(write(tmp_path / "a.nrrd", **header), shown)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("data file: ../elsewhere.raw.gz", "has its values in several files, or elsewhere"),
        ("data file: LIST", "elsewhere; write them into one beside it"),
        ("data file: slice%03d.raw 1 6 1", "write them into one beside it"),
        ("data file: none.raw.gz", "write them into one beside it"),
    ],
)
def test_values_elsewhere_are_refused(tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in/a.nhdr")
    shutil.copy(tmp_path / "in/a.raw.gz", tmp_path / "elsewhere.raw.gz")
    path.write_text(path.read_text().replace("data file: a.raw.gz", line))
    with pytest.raises(DataError, match=told):
        open_file(path, shown)


def test_a_file_that_breaks_off_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nrrd")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"a.nrrd cannot be read as a volume: .*; export it anew"):
        open_file(path, shown).plane(2, 0)
    path.write_bytes(b"NRRD0004\nnothing")
    with pytest.raises(DataError, match=r"a.nrrd cannot be read as a volume: .*; export it anew"):
        open_file(path, shown)
