"""Contours as labels of volumes: Sunnybrook's text files and RTSTRUCT, the real ones and every fault by its name."""

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from test_volume_files import REAL, edit, settings, shown, study, written

from cones.common.errors import DataError
from cones.data.masks import object_mask
from cones.readers.volumes.contours import contour_map, filled
from cones.readers.volumes.dicom import series_of
from cones.readers.volumes.headers import read_headers
from cones.readers.volumes.layouts import find_scans
from cones.readers.volumes.rtstruct import roi_maps
from cones.readers.volumes.series import Series, sorted_series

HEART = REAL / "sunnybrook"
real = pytest.mark.skipif(not HEART.is_dir(), reason="the real data is not here")
SMALL = {"mm2": 0, "pixels": 1}
SQUARE = [(5, 4), (9, 4), (9, 7), (5, 7)]
"""x and y of the middles of pixels, from 0: what it encloses is 4 x 3 pixels."""


def area(points: np.ndarray) -> float:
    """Of a polygon, by the shoelace formula."""
    x, y = points.T
    return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2


def test_pixels_are_inside_by_their_middles() -> None:
    square = np.array([(1.3, 2.3), (4.3, 2.3), (4.3, 6.3), (1.3, 6.3)])
    expected = np.zeros((9, 8), bool)
    expected[3:7, 2:5] = True
    assert np.array_equal(filled([square], (9, 8)), expected)
    assert np.array_equal(filled([square + 0.4], (9, 8)), expected), "from 1.7 to 4.7, and from 2.7 to 6.7"
    inner = np.array([(2.5, 3.5), (3.5, 3.5), (3.5, 5.5), (2.5, 5.5)])
    expected[4:6, 3] = False
    assert np.array_equal(filled([square, inner], (9, 8)), expected)
    outside = np.array([(-3.5, -3.5), (1.5, -3.5), (1.5, 1.5), (-3.5, 1.5)])
    expected[0:2, 0:2] = True
    assert np.array_equal(filled([square, inner, outside], (9, 8)), expected)


def test_a_ring_drawn_with_one_stroke_has_its_hole() -> None:
    """A keyhole: in to the inner contour and out again along one line."""
    ring = [(1, 1), (9, 1), (9, 9), (1, 9), (1, 4), (4, 4), (4, 6), (6, 6), (6, 4), (1, 4)]
    found = filled([np.array(ring, float) - 0.5], (12, 12))
    expected = np.zeros((12, 12), bool)
    expected[1:9, 1:9] = True
    expected[4:6, 4:6] = False
    assert np.array_equal(found, expected)


@real
def test_real_contours_have_the_areas_of_their_polygons() -> None:
    both = {1: "left ventricle", 2: "myocardium"}
    scans = find_scans(settings(HEART, labels=both), shown).scans
    assert len({scan.patient for scan in scans}) == 5
    count = 0
    for scan in scans:
        assert isinstance(scan.image, Series)
        for contour in scan.labels:
            points = np.loadtxt(contour.path)  # type: ignore[union-attr]
            alone = contour_map([contour], scan.image.grid, {1, 2}, shown)  # type: ignore[list-item]
            across, down, _ = scan.image.grid.spacing
            assert (alone > 0).any((0, 1)).nonzero()[0].tolist() == [contour.at]  # type: ignore[union-attr]
            assert (alone > 0).sum() * across * down == pytest.approx(area(points) * across * down, rel=0.03)
            count += 1
    assert count == 2 * 46, "the slices that have both"


@real
def test_the_real_heart_is_read_with_its_annotated_slices_alone(tmp_path: Path) -> None:
    config = settings(HEART, window="percentile", slices={"axis": "acquired"})
    classes, records, report = written(config, tmp_path / "out")
    assert classes == ("left ventricle",)
    assert {split: len({r.group for r in of}) for split, of in records.items()} == {"train": 3, "val": 1, "test": 1}
    assert sum(map(len, records.values())) == len(list(HEART.glob("contourfiles/*/i-contours/*"))) == 96
    assert all(len(r.objects or ()) == 1 and r.size == (256, 256) for of in records.values() for r in of)
    assert (sum(report["volumes"].values()), report["unlabelled"]) == (10, 18)
    assert len(report["unannotated"]) == 2 * 12 - len(list(HEART.glob("contourfiles/SC-HF-I-1/i-contours/*")))
    with pytest.raises(DataError, match=r"across which `slices.axis: axial` cuts; set it to `acquired`"):
        written(settings(HEART, window="percentile"), tmp_path / "again")


@real
def test_contours_lie_on_the_edge_of_the_blood(tmp_path: Path) -> None:
    """Which is brighter than what is around it: one pixel to the side, the step is smaller."""
    from scipy.ndimage import binary_dilation, binary_erosion

    config = settings(HEART, window="percentile", slices={"axis": "acquired"})
    _, records, _ = written(config, tmp_path / "out")
    steps = []
    from PIL import Image

    for split, of in records.items():
        for record in of:
            picture = np.asarray(Image.open(tmp_path / "out" / split / record.file), float)
            (heart,) = record.objects or ()
            steps.append([])
            for by in (-1, 0, 1):
                mask = np.roll(object_mask(heart, picture.shape), (by, by), (0, 1))  # type: ignore[arg-type]
                inner, outer = mask & ~binary_erosion(mask), binary_dilation(mask) & ~mask
                steps[-1].append(picture[inner].mean() - picture[outer].mean())
    before, here, after = np.mean(steps, 0)
    assert here > before
    assert here > after


# What follows is made here.


def write_contour(folder: Path, image: int, points: object = None, kind: str = "i") -> Path:
    """A file with a contour; points from 0, which it counts from 1."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"IM-0001-{image:04d}-{kind}contour-manual.txt"
    lines = np.array(SQUARE if points is None else points, float) + 1
    path.write_text("\n".join(f"{x:.2f} {y:.2f}" for x, y in lines.tolist()) + "\n")
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six patients of five slices: 0.dcm to 4.dcm, of which 1 and 2 have contours."""
    raw = tmp_path_factory.mktemp("heart") / "raw"
    for number, files in enumerate(study(raw)):
        (files[0].parent / "seg.dcm").unlink()
        for image in (1, 2):
            write_contour(raw / f"contours/id{number}/i-contours", image, np.array(SQUARE) - 0.5)
            outer = np.array([(3, 2), (12, 2), (12, 10), (3, 10)]) - 0.5
            write_contour(raw / f"contours/id{number}/o-contours", image, outer, "o")
    return raw


@pytest.fixture
def heart(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "raw"))


def test_slices_without_a_contour_are_no_ground_truth(sound: Path, tmp_path: Path) -> None:
    classes, records, report = written(settings(sound, least=SMALL), tmp_path / "out")
    assert classes == ("left ventricle",)
    assert {split: len(of) for split, of in records.items()} == {"train": 8, "val": 2, "test": 2}
    assert {r.slice for of in records.values() for r in of} == {1, 2}
    assert len(report["unannotated"]) == 6 * 3
    boxes = {o.box for of in records.values() for r in of for o in r.objects or ()}
    assert boxes == {(5.0, 4.0, 9.0, 7.0)}
    assert report["objects"]["pictures_without_objects"] == 0


def test_with_two_classes_the_muscle_is_the_ring_and_slices_need_both_contours(heart: Path, tmp_path: Path) -> None:
    (heart / "contours/id0/o-contours/IM-0001-0001-ocontour-manual.txt").unlink()
    config = settings(heart, least=SMALL, labels={1: "blood", 2: "muscle"})
    classes, records, report = written(config, tmp_path / "out")
    assert classes == ("blood", "muscle")
    assert sum(map(len, records.values())) == 6 * 2 - 1
    assert len(report["unannotated"]) == 6 * 3 + 1
    ring = next(o for o in records["val"][0].objects or () if o.label == 1)
    assert ring.box == (3.0, 2.0, 12.0, 10.0)
    assert object_mask(ring, (24, 24)).sum() == 9 * 8 - 4 * 3
    muscle = written(settings(heart, least=SMALL, labels={2: "muscle"}), tmp_path / "alone")[1]
    (alone,) = muscle["val"][0].objects or ()
    assert alone.mask == ring.mask


def test_each_phase_with_contours_is_a_volume(heart: Path, tmp_path: Path) -> None:
    for number in range(6):
        for k in range(5):
            for phase, image in ((0, k), (1, 10 + k), (2, 20 + k)):
                if phase:
                    shutil.copy(heart / f"p{number}/{k}.dcm", heart / f"p{number}/{image}.dcm")
                edit(heart / f"p{number}/{image}.dcm", TriggerTime=100.0 - 10 * phase, InstanceNumber=image)
        write_contour(heart / f"contours/id{number}/i-contours", 24)
    _, records, report = written(settings(heart, least=SMALL), tmp_path / "out")
    assert report["volumes"] == {"train": 8, "val": 2, "test": 2}
    assert report["unlabelled"] == 6, "the phase without contours"
    assert sorted(r.slice for r in records["val"]) == [1, 2, 4]
    assert len({r.volume for r in records["val"]}) == 2
    _, _, one = written(settings(heart, least=SMALL, phase=0), tmp_path / "one")
    assert one["volumes"] == {"train": 4, "val": 1, "test": 1}
    (heart / "p3/20.dcm").unlink()
    with pytest.raises(DataError, match="has 2 images in one place and 3 in another, so that their phases are not"):
        written(settings(heart, least=SMALL), tmp_path / "again")


def _write(path: Path, text: str) -> None:
    path.write_text(text)


CONTOURS = "contours/id0/i-contours"
ONE = f"{CONTOURS}/IM-0001-0001-icontour-manual.txt"
HEART_FAULTS = {
    "no such image": (lambda raw: write_contour(raw / CONTOURS, 9), "a contour on an image that its patient has not"),
    "no such patient": (
        lambda raw: write_contour(raw / "contours/nobody", 1), "is a contour in a folder of no patient; call the folder"
    ),
    "one contour twice": (
        lambda raw: write_contour(raw / "contours/id0/other", 1), "are one contour of one image; keep one"
    ),
    "one image twice": (
        lambda raw: shutil.copy(raw / "p0/1.dcm", raw / "p0/copy-1.dcm"), "has several images of the number 1"
    ),
    "a line of three": (lambda raw: _write(raw / ONE, "1 2 3\n"), "has a line that is not x and y"),
    "words": (lambda raw: _write(raw / ONE, "a b\n" * 3), "could not convert string to float"),
    "no number": (lambda raw: _write(raw / ONE, "nan nan\n" * 3), "has a point that is not finite"),
    "two points": (lambda raw: _write(raw / ONE, "1 2\n3 4\n"), "a polygon of 4 numbers"),
    "nothing": (lambda raw: _write(raw / ONE, ""), "a polygon of 0 numbers"),
    "a point far away": (lambda raw: write_contour(raw / CONTOURS, 1, [(1, 1), (5, 1), (5, 4000)]), "further out than"),
    "a link without its column": (lambda raw: _write(raw / "link.csv", "a,b\n1,2\n"), "has no column original_id"),
    "a link twice": (
        lambda raw: _write(raw / "link.csv", "patient_id,original_id\nid0,x\nid1,y\nid2,x\n"),
        "the lines 2 and 4 of link.csv are of one original_id",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", HEART_FAULTS)
def test_a_faulty_contour_is_refused_by_name(heart: Path, tmp_path: Path, fault: str) -> None:
    spoil, why = HEART_FAULTS[fault]
    spoil(heart)
    with pytest.raises(DataError, match=why) as refusal:
        written(settings(heart, least=SMALL), tmp_path / "out")
    assert "id0" not in str(refusal.value)


def test_a_contour_without_an_image_is_left_out_with_skip(heart: Path, tmp_path: Path) -> None:
    write_contour(heart / CONTOURS, 9)
    _, _, report = written(settings(heart, least=SMALL, unreadable="skip"), tmp_path / "out")
    assert len(report["unreadable"]) == 1
    assert sum(report["volumes"].values()) == 6


def test_a_table_leads_from_the_contours_to_the_patients(heart: Path, tmp_path: Path) -> None:
    for number in range(6):
        (heart / f"contours/id{number}").rename(heart / f"contours/SC-{number}")
    lines = "\n".join(f"id{number},SC-{number}" for number in range(6))
    (heart / "link.csv").write_text(f"patient_id,original_id\n{lines}\n")
    assert sum(written(settings(heart, least=SMALL), tmp_path / "out")[2]["volumes"].values()) == 6


def test_contours_have_two_values_alone(sound: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="`labels` has the value 3, and contours have 1, what the endocardium"):
        written(settings(sound, labels={1: "a", 3: "b"}), tmp_path / "out")


def test_new_rows_for_contours_cut_as_acquired(sound: Path, tmp_path: Path) -> None:
    from cones.cli.recognise_volumes import is_volumes, look_at_volumes

    assert is_volumes(sound / "contours"), "many contours may come before the first DICOM"
    found = look_at_volumes(sound)
    assert found.entry["slices"] == {"axis": "acquired"}
    assert (found.classes, found.pictures) == (["left ventricle"], 6)
    # 6 patients, of whom 4 are held back at worst; each has 2 slices of 12 pixels, of 2 x 2 mm, and 16 are the least.
    assert found.fewest == 0
    for number in range(6):
        for image in (1, 2):
            write_contour(tmp_path / f"contours/id{number}", image, [(2, 2), (12, 2), (12, 12), (2, 12)])
        shutil.copytree(sound / f"p{number}", tmp_path / f"p{number}")
    assert look_at_volumes(tmp_path).fewest == 4


# RTSTRUCT.


def write_rtstruct(path: Path, series: list[pydicom.Dataset], rois: dict[str, list], **about: object) -> Path:
    """An RTSTRUCT on a series: the contours of each ROI, (n, 3) in mm, or such with their kind."""
    from cones.readers.volumes.export import _dataset, _file

    file = _file("1.2.840.10008.5.1.4.1.1.481.3", generate_uid())
    file.Modality, file.PatientID, file.SeriesInstanceUID = "RTSTRUCT", series[0].PatientID, generate_uid()
    of_series = _dataset(SeriesInstanceUID=series[0].SeriesInstanceUID)
    study_of = _dataset(RTReferencedSeriesSequence=[of_series])
    file.ReferencedFrameOfReferenceSequence = [_dataset(RTReferencedStudySequence=[study_of])]
    file.StructureSetROISequence = [_dataset(ROINumber=n, ROIName=name) for n, name in enumerate(rois, 1)]
    file.ROIContourSequence = []
    for number, contours in enumerate(rois.values(), 1):
        roi = _dataset(ReferencedROINumber=number)
        roi.ContourSequence = []
        for contour in contours:
            kind, points = contour if isinstance(contour, tuple) else ("CLOSED_PLANAR", contour)
            flat = np.round(np.array(points, float), 4).ravel().tolist()
            roi.ContourSequence.append(_dataset(ContourGeometricType=kind, ContourData=flat))
        file.ROIContourSequence.append(roi)
    for keyword, value in about.items():
        setattr(file, keyword, value)
    assert file.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    file.save_as(path, enforce_file_format=True)
    return path


def in_mm(points: object, k: float, affine: np.ndarray) -> np.ndarray:
    """Points (n, 2) in pixels of a slice as DICOM's millimetres."""
    flat = np.array(points, float)
    places = np.c_[flat, np.full(len(flat), k), np.ones(len(flat))] @ affine.T
    return places[:, :3] * (-1, -1, 1)


UPRIGHT = np.diag([-2.0, -2.0, 3.0, 1.0])
"""The affine of the series that `study` writes."""


def opened(folder: Path) -> tuple[Series, list[pydicom.Dataset]]:
    files = sorted(folder.glob("[0-9].dcm"))
    series = sorted_series(series_of(read_headers(files, shown).pictures, shown)[0], shown)
    return series, [pydicom.dcmread(path) for path in files]


def test_rois_are_put_on_the_grid_of_an_oblique_series(tmp_path: Path) -> None:
    """A ring of two contours, a keyhole's rival, and a second part; areas by the shoelace formula."""
    (files,) = study(tmp_path / "raw", patients=1, side=64)
    row, column = np.array([0.6, 0.8, 0]), np.array([0.0, 0, -1])
    for k, path in enumerate(files):
        place = np.array([10, -20, 5]) + 3.0 * k * np.cross(row, column)
        edit(path, ImageOrientationPatient=[*row, *column], ImagePositionPatient=place.round(6).tolist())
    series, tags = opened(tmp_path / "raw/p0")
    turn = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    outer, inner = (np.c_[30 + r * np.cos(turn), 28 + 0.7 * r * np.sin(turn)] for r in (18.3, 9.1))
    apart = np.array([(50.2, 50.7), (58.4, 51.0), (57.0, 60.1)])
    affine = series.grid.affine
    path = write_rtstruct(
        tmp_path / "rt.dcm", tags, {"other": [], "GTV": [in_mm(p, 2, affine) for p in (outer, inner, apart)]}
    )
    (header,) = read_headers([path], shown).labels
    ((box, (i, j, k)),) = roi_maps(header, series, {"GTV": 7}, shown)
    assert box.shape[2] == 1, "of what is marked alone"
    found = np.zeros(series.grid.shape, np.uint16)
    found[i : i + box.shape[0], j : j + box.shape[1], k : k + 1] = box
    assert set(np.unique(found)) == {0, 7}
    assert np.flatnonzero(found.any((0, 1))).tolist() == [2]
    expected = area(outer) - area(inner) + area(apart)
    assert (found > 0).sum() == pytest.approx(expected, rel=0.02)
    assert not found[30, 28, 2], "the hole"
    assert found[30 + 14, 28, 2]
    assert found[54, 53, 2]


def rtstruct_study(raw: Path, patients: int = 6) -> Path:
    """A study in which RTSTRUCT files mark 4 x 3 pixels in the slices 1 and 2, and a body around them."""
    for number, files in enumerate(study(raw, patients=patients)):
        (files[0].parent / "seg.dcm").unlink()
        series = [pydicom.dcmread(path) for path in files]
        square, around = np.array(SQUARE) - 0.5, np.array([(1, 1), (20, 1), (20, 20), (1, 20)]) - 0.5
        rois = {
            "lesion": [in_mm(square, k, UPRIGHT) for k in (1, 2)],
            f"body of MARK{number}": [in_mm(around, k, UPRIGHT) for k in range(5)],
        }
        write_rtstruct(files[0].parent / "rt.dcm", series, rois)
    return raw


def test_rois_are_classes_by_their_names(tmp_path: Path) -> None:
    raw = rtstruct_study(tmp_path / "raw")
    classes, records, report = written(settings(raw, least=SMALL, labels={5: "lesion"}), tmp_path / "out")
    assert classes == ("lesion",)
    assert {split: len(of) for split, of in records.items()} == {"train": 4 * 4, "val": 5, "test": 5}
    boxes = [o.box for r in records["test"] for o in r.objects or ()]
    assert boxes == [(5.0, 4.0, 9.0, 7.0)] * 2
    assert len(report["other_rois"]) == 6
    assert "MARK" not in str(report)


def test_rois_may_lie_on_each_other(tmp_path: Path) -> None:
    raw = rtstruct_study(tmp_path / "raw")
    for path in raw.glob("p*/rt.dcm"):
        names = pydicom.dcmread(path).StructureSetROISequence
        names[1].ROIName = "body"
        edit(path, StructureSetROISequence=names)
    classes, records, _ = written(settings(raw, least=SMALL), tmp_path / "out")
    assert classes == ("body", "lesion")
    both = {o.label: object_mask(o, (24, 24)).sum() for r in records["val"] if r.slice == 1 for o in r.objects or ()}
    assert both == {0: 19 * 19, 1: 12}


def _contour(raw: Path, *contours: object) -> None:
    _, tags = opened(raw / "p0")
    write_rtstruct(raw / "p0/rt.dcm", tags, {"lesion": list(contours)})


ROI_FAULTS = {
    "on no slice": (
        lambda raw: _contour(raw, in_mm(SQUARE, 4.6, UPRIGHT)),
        r"the ROI 1 of file \w+ has a contour that lies on no slice of its series: it goes from slice 5.6 to 5.6, of 5",
    ),
    "across slices": (
        lambda raw: _contour(raw, [(8, 8, 0), (20, 8, 0), (20, 8, 9), (8, 8, 9)]), "it goes from slice 1.0 to 4.0, of 5"
    ),
    "two heights": (
        lambda raw: _contour(raw, in_mm(SQUARE, 2, UPRIGHT), in_mm(SQUARE, 2.3, UPRIGHT)),
        "has contours at two heights that fall into slice 3",
    ),
    "beside the picture": (
        lambda raw: _contour(raw, in_mm(np.array(SQUARE) + 900, 2, UPRIGHT)), "in slice 3 that is none of its series"
    ),
    "an open line": (
        lambda raw: _contour(raw, ("OPEN_PLANAR", in_mm(SQUARE, 2, UPRIGHT))), "of the kind OPEN_PLANAR, which encloses"
    ),
    "a point": (lambda raw: _contour(raw, in_mm(SQUARE[:1], 2, UPRIGHT)), "a polygon of 2 numbers"),
    "no whole points": (lambda raw: _contour(raw, ("CLOSED_PLANAR", [1.0, 2, 3, 4])), "a contour of 4 numbers"),
    "another series": (
        lambda raw: edit(raw / "p0/rt.dcm", ReferencedFrameOfReferenceSequence=[]), "is of a series that is not in"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", ROI_FAULTS)
def test_a_faulty_rtstruct_is_refused_by_name(tmp_path: Path, fault: str) -> None:
    raw = rtstruct_study(tmp_path / "raw")
    spoil, why = ROI_FAULTS[fault]
    spoil(raw)
    with pytest.raises(DataError, match=why):
        written(settings(raw, least=SMALL, labels={1: "lesion"}), tmp_path / "out")


def test_a_contour_near_a_slice_is_on_it(tmp_path: Path) -> None:
    raw = rtstruct_study(tmp_path / "raw", patients=3)
    _contour(raw, in_mm(np.array(SQUARE) - 0.5, 2.4, UPRIGHT))
    _, records, _ = written(settings(raw, least=SMALL, labels={1: "lesion"}), tmp_path / "out")
    # Of the three patients one is in each split; the one with one contour is among them.
    slices = [sorted(r.slice for r in of if r.objects) for of in records.values()]
    assert sorted(slices) == [[1, 2], [1, 2], [2]]
