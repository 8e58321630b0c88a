"""A study of CT through the whole pipeline and back into its volumes, and what of its people is left on the way."""

import csv
import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from conftest import ROOT, Project
from test_volume_files import decathlon, study
from test_volume_geometry import AFFINES

from cones.common.errors import DataError
from cones.data.masks import encode_mask
from cones.inference.volumes import PredictedVolume, label_map
from cones.inference.volumes_write import dicom_seg_of, nifti_bytes
from cones.readers.volumes.cutting import cut_of
from cones.readers.volumes.geometry import Grid
from cones.readers.volumes.lesions import lesions_of
from cones.readers.volumes.settings import VolumeData
from cones.readers.volumes.volume import FileVolume
from cones.tasks.detection.infer import Detections
from cones.tasks.detection.lesions import Found, join_slices

TAGS = (
    "PatientName", "PatientID", "OtherPatientIDs", "PatientAddress", "InstitutionName", "InstitutionAddress",
    "ReferringPhysicianName", "StudyDescription", "SeriesDescription", "ProtocolName", "StationName",
    "OperatorsName", "AccessionNumber", "StudyID", "DeviceSerialNumber", "ManufacturerModelName",
    "RequestingPhysician", "PerformingPhysicianName", "PatientComments", "ImageComments",
    "AdditionalPatientHistory", "Occupation", "EthnicGroup", "MedicalAlerts", "Allergies",
    "PatientTelephoneNumbers", "PatientMotherBirthName", "RequestedProcedureDescription",
    "InstitutionalDepartmentName", "PhysiciansOfRecord", "BodyPartExamined",
)  # fmt: skip
UIDS = ("StudyInstanceUID", "FrameOfReferenceUID")
PARAMS = """
backbones:
  toy: {{kind: glip, source: models/backbones/toy-glip}}
data:
  chests: {{kind: volumes, source: {source}, window: lung, least: {{mm2: 0, pixels: 1}}}}
concepts:
  lesions: {{task: segmentation, backbone: toy, data: chests, shots: 2, seed: 0, score_threshold: 0.0}}
runs:
  lesions-cones: {{concept: lesions, method: {{name: cones, epochs: 2}}}}
finetunes: {{}}
"""


def marker(what: str, number: int) -> str:
    return f"MARK{what[:6].upper()}{number}"


def mark(raw: Path) -> set[str]:
    """Write strings into every tag, file name and folder name of a study; returns them."""
    written: set[str] = set()
    for number, folder in enumerate(sorted(raw.iterdir())):
        for k, path in enumerate(sorted(folder.iterdir())):
            file = pydicom.dcmread(path)
            for place, keyword in enumerate(TAGS):
                value = marker(f"T{place:02d}", number)
                written.add(value)
                setattr(file, keyword, value)
            for place, keyword in enumerate(UIDS):
                value = f"1.2.{7000 + place}.{8000 + number}.90909"
                written.add(value)
                setattr(file, keyword, value)
            file.PatientBirthDate = f"1931020{number}"
            file.add_new((0x0011, 0x0010), "LO", "private")
            file.add_new((0x0011, 0x1001), "LO", marker("PRIV", number))
            file.save_as(path)
            name = marker("FILE", 10 * number + k)
            path.rename(folder / f"{name}.dcm")
            written |= {name, marker("PRIV", number), file.PatientBirthDate, str(file.SeriesInstanceUID)}
        folder.rename(raw / marker("FOLDER", number))
        written.add(marker("FOLDER", number))
    return written


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory, toy_clip: Path, toy_glip: Path) -> tuple[Project, set[str]]:
    """A project on a study full of marks, whose graph has run."""
    import shutil

    folder = tmp_path_factory.mktemp("medical") / "project"
    folder.mkdir()
    project = Project(folder, toy_clip)
    shutil.copytree(toy_glip, folder / "models/backbones/toy-glip")
    study(folder.parent / "raw", patients=5)
    marks = mark(folder.parent / "raw")
    assert len(marks) > 40
    project.params(PARAMS.format(source="../raw"))
    done = project.run("dvc", "repro")
    assert done.returncode == 0, done.stdout
    (folder / "repro.log").write_text(done.stdout)
    registered = project.cones("register")
    assert registered.returncode == 0, registered.stdout
    (folder / "register.log").write_text(registered.stdout)
    return project, marks


def leaks(folder: Path, marks: set[str]) -> list[str]:
    """The files below a folder, by their names or their content, that have one of the marks."""
    found = []
    for path in folder.rglob("*"):
        if not path.is_file() or path.is_symlink() or "data/keys" in path.as_posix() or ".git/" in path.as_posix():
            continue
        content = path.read_bytes()
        found += [f"{path}: {m}" for m in marks if m.encode() in content or m in path.relative_to(folder).as_posix()]
    return found


def test_nothing_of_a_person_is_left_after_the_pipeline(marked, tmp_path: Path) -> None:
    project, marks = marked
    out = project.folder / "found"
    predicted = project.cones("predict", "lesions", str(_series(project)), "--out", "found")
    assert predicted.returncode == 0, predicted.stdout
    name = _series(project).name
    named_by_hand = {str(p) for p in out.iterdir() if name in p.name}
    assert named_by_hand, "files that are written where a person asks are called as what they gave"
    assert [leak for leak in leaks(project.folder, marks) if f": {name}" not in leak or "found/" not in leak] == []
    keys = project.folder / "data/keys/chests.csv"
    assert marker("T01", 0) in keys.read_text()
    assert oct(keys.stat().st_mode)[-3:] == oct((project.folder / ".cones-salt").stat().st_mode)[-3:] == "600"


def test_the_report_and_the_version_say_for_whom_it_is_and_what_it_is_worth(marked) -> None:
    project, _ = marked
    told = json.loads((project.folder / "evaluated/lesions/rows/patients.json").read_text())
    assert {"box_ap10", "mask_ap30", "sensitivity_at_1fp", "dice"} <= set(told["lesions-cones"]["metrics"])
    assert told["lesions-cones"]["intervals"] == {}, "one patient is no sample"
    page = (project.folder / "results/report.html").read_text()
    assert "What it is worth for patients" in page
    assert "For research only, not for diagnosis." in page
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{project.folder}/mlflow.db")
    (version, *_) = client.search_model_versions("name = 'lesions'")
    assert version.description.startswith("**For research only, not for diagnosis.**")
    assert "Patients: 3 train, 1 val, 1 test." in version.description
    assert "modality CT, window lung" in version.description
    assert "- sensitivity_at_1fp: " in version.description


def _series(project: Project) -> Path:
    return sorted((project.folder.parent / "raw").iterdir())[0]


def test_a_second_run_does_nothing_and_another_window_prepares_its_data_again(marked, tmp_path: Path) -> None:
    project = marked[0].copy(tmp_path / "project")
    os.symlink(marked[0].folder.parent / "raw", tmp_path / "raw")
    again = project.run("dvc", "repro")
    assert "Data and pipelines are up to date." in again.stdout, again.stdout
    project.params((project.folder / "params.yaml").read_text().replace("window: lung", "window: soft"))
    changed = project.run("dvc", "repro", "prepare")
    ran = [line.split("'")[1] for line in changed.stdout.splitlines() if line.startswith("Running stage")]
    assert ran == ["plan", "prepare@chests"]


def test_a_concept_knows_how_its_pictures_were_cut(marked) -> None:
    from cones.concept.file import Concept

    card = Concept.load(marked[0].folder / "searched/lesions/lesions-cones/concept.safetensors").card
    assert card.reading == {"window": "lung", "labels": {"1": "lesion"}, "modality": "CT"}


def test_a_volume_is_predicted_onto_its_own_grid(marked, tmp_path: Path) -> None:
    project, _ = marked
    concept = "searched/lesions/lesions-cones/concept.safetensors"
    affine = AFFINES["oblique"]
    values = np.random.default_rng(0).integers(-900, 100, (30, 24, 4)).astype(np.int16)
    image = nibabel.Nifti1Image(values, affine)
    image.header["descrip"] = b"MARKHEADER"
    nibabel.save(image, tmp_path / "ct.nii.gz")
    done = project.cones("predict", concept, str(tmp_path / "ct.nii.gz"), "--out", str(tmp_path / "found"))
    assert done.returncode == 0, done.stdout
    found = nibabel.load(tmp_path / "found/ct_seg.nii.gz")
    assert found.shape == values.shape
    assert np.allclose(found.affine, affine, atol=1e-5)
    assert set(np.unique(np.asanyarray(found.dataobj))) <= {0, 1}
    assert bytes(found.header["descrip"]).strip(b"\0") == b""
    with (tmp_path / "found/ct_lesions.csv").open() as file:
        lines = list(csv.DictReader(file))
    told = json.loads((tmp_path / "found/predictions.json").read_text())
    assert told["use"] == "For research only, not for diagnosis."
    assert [line["lesion"] for line in lines] == [str(one["lesion"]) for one in told["volumes"][0]["lesions"]]
    assert lines, "an untrained detector at the threshold 0 finds something everywhere"
    for line in lines:
        centre = np.linalg.inv(affine) @ [float(line["x_mm"]), float(line["y_mm"]), float(line["z_mm"]), 1]
        low, high = ([float(line[a + n]) for a in "ijk"] for n in "12")
        assert line["space"] == "RAS"
        assert all(a - 0.1 <= c <= b + 0.1 for a, c, b in zip(low, centre, high))
    assert (tmp_path / "found/ct.jpg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("seg.dcm", "is a segmentation, and not a volume to look at"),
        ("four.nii.gz", "holds 2 volumes; say with `volume_index`"),
        ("missing.nii.gz", "missing.nii.gz does not exist"),
    ],
)
def test_what_is_no_volume_is_refused_and_nothing_is_written(marked, tmp_path: Path, given: str, why: str) -> None:
    import re

    project, _ = marked
    for path in _series(project).iterdir():
        if pydicom.dcmread(path, stop_before_pixels=True).Modality == "SEG":
            (tmp_path / "seg.dcm").write_bytes(path.read_bytes())
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), np.eye(4)), tmp_path / "four.nii.gz")
    concept = "searched/lesions/lesions-cones/concept.safetensors"
    done = project.cones("predict", concept, str(tmp_path / given), "--out", str(tmp_path / "found"))
    assert done.returncode == 1
    assert re.search(why, done.stdout), done.stdout
    assert not (tmp_path / "found/predictions.json").exists()


def test_a_patient_moved_into_two_splits_by_hand_fails_encode_and_evaluate(marked, tmp_path: Path) -> None:
    project = marked[0].copy(tmp_path / "project")
    os.symlink(marked[0].folder.parent / "raw", tmp_path / "raw")
    prepared = project.folder / "data/prepared/chests"
    train = json.loads((prepared / "train/manifest.json").read_text())
    for split, stage in (("val", "encode"), ("test", "evaluate")):
        path = prepared / split / "manifest.json"
        before = path.read_text()
        content = json.loads(before)
        content["records"][0]["group"] = train["records"][0]["group"]
        path.unlink()  # it may be a link into DVC's cache
        path.write_text(json.dumps(content))
        done = project.stage(stage, "lesions")
        assert done.returncode == 1
        assert "groups have pictures in more than one split" in done.stdout
        path.write_text(before)


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal", "acquired"])
@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_the_truth_as_prediction_comes_back_voxel_for_voxel(affine: np.ndarray, axis: str) -> None:
    rng = np.random.default_rng(3)
    truth = np.zeros((9, 10, 11), np.uint8)
    truth[1:4, 2:6, 3:5], truth[5:8, 1:3, 6:9], truth[2, 8, 9] = 1, 2, 1
    volume = FileVolume(nibabel.Nifti1Image(rng.normal(0, 1, truth.shape), affine), Grid(truth.shape, affine), "it")
    config = VolumeData.model_validate(
        {"kind": "volumes", "source": ".", "window": {"level": 0, "width": 4}, "slices": {"axis": axis}}
    )
    cut = cut_of(config, volume, None, range(9), "it")
    found = []
    lesions = lesions_of(truth, {1: 0, 2: 1}, "it")
    for at in range(truth.shape[cut.view.axis]):
        seen = [one for one in lesions if at in one.span(cut.view.axis)]
        masks = [(one.label, cut.mask(one.part(cut.view, at, cut.stored_size))) for one in seen]
        masks = [(label, mask) for label, mask in masks if mask.any()]
        found.append(_detections(masks, cut.size))
    back = label_map(found, cut, volume, {"a": 1, "b": 2})
    assert np.array_equal(back, truth)
    image = nibabel.Nifti1Image.from_bytes(__import__("gzip").decompress(nifti_bytes(back, affine)))
    assert np.array_equal(np.asanyarray(image.dataobj), truth)
    assert np.allclose(image.affine, affine, atol=1e-6)


def _detections(masks: list[tuple[int, np.ndarray]], size: tuple[int, int]) -> Detections:
    import torch

    boxes = []
    for _, mask in masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    labels = tuple("ab"[label] for label, _ in masks)
    regions = tuple(encode_mask(mask) for _, mask in masks)
    boxes_of = torch.tensor(np.array(boxes, np.float32).reshape(-1, 4))
    return Detections(boxes_of, torch.ones(len(masks)), labels, size, regions)


def test_a_dicom_segmentation_comes_back_as_it_was_found(tmp_path: Path) -> None:
    """Written by highdicom on a series, read by this project and by highdicom."""
    import highdicom

    from cones.readers.volumes.dicom import series_of
    from cones.readers.volumes.headers import read_headers
    from cones.readers.volumes.pixels import DicomPixels
    from cones.readers.volumes.seg import label_map as read_label_map
    from cones.readers.volumes.series import sorted_series
    from cones.readers.volumes.volume import SeriesVolume

    study(tmp_path / "raw", patients=1)
    headers = read_headers(sorted((tmp_path / "raw/p0").iterdir()), str)
    series = sorted_series(series_of(headers.pictures, str)[0], str)
    volume = SeriesVolume(series, DicomPixels(str))
    truth = np.zeros(series.grid.shape, np.uint8)
    truth[3:6, 4:9, 1:3], truth[15:18, 2:4, 3] = 5, 2
    config = VolumeData.model_validate({"kind": "volumes", "source": ".", "window": "lung"})
    cut = cut_of(config, volume, None, range(5), "it")
    predicted = PredictedVolume([], [], cut, volume, truth, "LPS", {"a": 2, "b": 5})
    dicom_seg_of(predicted).save_as(tmp_path / "seg.dcm")
    (header,) = read_headers([tmp_path / "seg.dcm"], str).labels
    array, (i, j, k) = read_label_map(header, series, str, {"a": 2, "b": 5})
    back = np.zeros(series.grid.shape, np.uint16)
    back[i : i + array.shape[0], j : j + array.shape[1], k : k + array.shape[2]] = array
    assert (i, j, k) == (3, 2, 1)
    assert np.array_equal(back, truth)
    read = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert [read.get_segment_description(n).SegmentLabel for n in (1, 2)] == ["a", "b"]
    nothing = PredictedVolume([], [], cut, volume, truth * 0, "LPS", {"a": 2, "b": 5})
    with pytest.raises(DataError, match="nothing was found in the volume"):
        dicom_seg_of(nothing)


def found(*boxes: tuple[float, ...], label: str = "a", score: float = 0.5) -> list[Found]:
    return [Found((b[0], b[1], b[2], b[3]), label, score, i) for i, b in enumerate(boxes)]


def test_new_rows_for_volumes_are_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DICOM and a decathlon are known without a word. Shots are what the training volumes have in any case: of 5
    volumes 4 may be held back, of 12 there are 7, and each has a slice of each class at that stride."""
    import shutil

    from typer.testing import CliRunner

    from cones.cli.main import app
    from cones.config.params import load_params

    study(tmp_path / "dicom", patients=5, **{"BodyPartExamined": "CHEST"})
    decathlon(tmp_path / "decathlon", count=12)
    (tmp_path / "project").mkdir()
    shutil.copy(ROOT / "params.yaml", tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    os.symlink(ROOT / "models", "models")
    for name, shots in (("dicom", "1 pictures a class"), ("decathlon", "5 pictures a class")):
        done = CliRunner().invoke(app, ["new", name, "--source", f"../{name}", "--yes"], env={"COLUMNS": "200"})
        assert done.exit_code == 0, done.output
        assert f"for segmentation with glip-tiny and {shots}" in done.output
    data = load_params().data
    assert data["dicom"].model_dump(exclude_defaults=True) == {
        "kind": "volumes", "source": "../dicom", "window": "soft", "slices": {"stride": 5.0}, "crop": "body",
    }  # fmt: skip
    assert data["decathlon"].model_dump(exclude_defaults=True)["window"] == "percentile"
    refused = CliRunner().invoke(app, ["new", "x", "--source", "../dicom", "--task", "classification", "--yes"])
    assert "set `patch: 40`" in str(refused.exception or refused.output)


PICTURES_ALONE = """
import contextlib, runpy, sys
from typer.testing import CliRunner
from cones.cli.main import app

run = CliRunner()
assert run.invoke(app, ["check"]).exit_code == 0
sys.argv = ["stages/search.py", "few-coop"]
with contextlib.suppress(SystemExit):
    runpy.run_path("stages/search.py", run_name="__main__")
done = run.invoke(app, ["predict", "searched/few/few-cones/concept.safetensors", "x.png", "--out", "found"])
assert done.exit_code == 0, done.output
loaded = {"monai", "pydicom", "nibabel"} & set(sys.modules)
assert not loaded, loaded
"""


def test_pictures_wait_for_no_medical_library(finished: Project, tmp_path: Path) -> None:
    """Some take their seconds and half a gigabyte."""
    from PIL import Image

    project = finished.copy(tmp_path / "project")
    Image.new("RGB", (32, 32), "red").save(project.folder / "x.png")
    done = project.run("python", "-c", PICTURES_ALONE)
    assert done.returncode == 0, done.stdout


def test_slices_join_to_lesions_over_one_gap_and_not_over_two() -> None:
    box = (0.0, 0.0, 10.0, 10.0)
    (one,) = join_slices([found(box), [], found(box, score=0.9)])
    assert sorted(one.parts) == [0, 2]
    assert one.score == 0.9
    assert len(join_slices([found(box), [], [], found(box)])) == 2


def test_lesions_of_two_classes_and_of_two_places_stay_apart() -> None:
    box, far = (0.0, 0.0, 10.0, 10.0), (50.0, 50.0, 60.0, 60.0)
    assert len(join_slices([found(box), found(box, label="b")])) == 2
    assert [sorted(one.parts) for one in join_slices([found(box, far), found(far)])] == [[0], [0, 1]]
    # 10 x 10 and 10 x 10 that share 4 x 10: 40 / 160 = 0.25, below 0.3
    assert len(join_slices([found(box), found((6.0, 0.0, 16.0, 10.0))])) == 2


def test_an_object_goes_on_with_the_one_that_it_overlaps_most() -> None:
    first, second = (0.0, 0.0, 10.0, 10.0), (4.0, 0.0, 14.0, 10.0)
    joined = join_slices([found(first, second), found((4.0, 0.0, 14.0, 10.0))])
    assert {tuple(sorted(one.parts)): one.parts[0].box for one in joined} == {(0,): first, (0, 1): second}
    assert join_slices([]) == []
