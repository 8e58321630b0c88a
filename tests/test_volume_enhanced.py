"""Enhanced DICOM: files whose frames are the slices of a series, read as the series of single files that they hold."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from cones.common.errors import DataError
from cones.data.identity import Pseudonyms
from cones.data.prepared import Split, write_split
from cones.inference.volumes import open_volume
from cones.readers.volumes.dicom import series_of
from cones.readers.volumes.enhanced import slices_of
from cones.readers.volumes.export import series_files, write_seg
from cones.readers.volumes.headers import read_headers
from cones.readers.volumes.pixels import DicomPixels
from cones.readers.volumes.series import sorted_series
from cones.readers.volumes.settings import VolumeData
from cones.readers.volumes.volume import SeriesVolume
from cones.readers.volumes.write import write_volumes

DEPTH = 5
ORDER = (3, 0, 4, 1, 2)


def item(**tags: Any) -> list[Dataset]:
    one = Dataset()
    for keyword, value in tags.items():
        setattr(one, keyword, value)
    return [one]


def enhanced(files: list[Dataset], path: Path, phases: int = 1) -> None:
    """A series as one file: its slices as frames in another order, each of some phases of its own."""
    slices = [(files[k], phase) for k in ORDER for phase in range(phases)]
    file, shared, each = deepcopy(files[0]), Dataset(), []
    shared.PixelMeasuresSequence = item(PixelSpacing=files[0].PixelSpacing)
    shared.PlaneOrientationSequence = item(ImageOrientationPatient=files[0].ImageOrientationPatient)
    shared.FrameVOILUTSequence = item(WindowCenter=-600, WindowWidth=1500)
    for one, phase in slices:
        frame = Dataset()
        frame.PlanePositionSequence = item(ImagePositionPatient=one.ImagePositionPatient)
        frame.PixelValueTransformationSequence = item(RescaleSlope=2, RescaleIntercept=-1024 + phase)
        frame.CardiacSynchronizationSequence = item(NominalCardiacTriggerDelayTime=100.0 - phase)
        each.append(frame)
    file.SharedFunctionalGroupsSequence, file.PerFrameFunctionalGroupsSequence = [shared], each
    file.NumberOfFrames = len(slices)
    file.PixelData = b"".join(one.PixelData for one, _ in slices)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "WindowCenter"):
        del file[keyword]
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.save_as(path, enforce_file_format=True)


def series(number: int = 0) -> tuple[np.ndarray, list[Dataset], np.ndarray]:
    values = np.random.default_rng(number).integers(-900, -500, (24, 24, DEPTH)).astype(np.int16)
    label = np.zeros(values.shape, np.uint8)
    label[4:10, 5:11, 1:3] = 1
    values[label > 0] = 100
    return values, series_files(values, (2.0, 2.0, 3.0), {"PatientID": f"id{number}", "Modality": "CT"}), label


def opened(path: Path, phase: int | None = None) -> SeriesVolume:
    headers = read_headers([path], str)
    (files,) = series_of(slices_of(headers.pictures, str), str)
    return SeriesVolume(sorted_series(files, str, phase), DicomPixels(str))


def test_frames_with_places_are_the_slices_of_a_volume(tmp_path: Path) -> None:
    values, files, _ = series()
    enhanced(files, tmp_path / "a.dcm")
    volume = opened(tmp_path / "a.dcm")
    assert volume.grid.shape == (24, 24, DEPTH)
    np.testing.assert_allclose(volume.grid.spacing, (2.0, 2.0, 3.0))
    for k in range(DEPTH):
        assert np.array_equal(volume.plane(2, k), 2.0 * (values[..., k].astype(float) + 1024) - 1024)
    assert volume.series.first.get("WindowCenter") == -600


def test_a_file_that_highdicom_made_of_a_series_is_that_series(tmp_path: Path) -> None:
    """Another writer than this project's."""
    highdicom = pytest.importorskip("highdicom")
    values, files, _ = series()
    for one in files:
        one.PatientSex, one.PatientBirthDate, one.PatientName = "O", "19700101", "A^B"
        one.StudyID, one.StudyDate, one.StudyTime, one.AccessionNumber = "1", "20200101", "000000", ""
        one.ReferringPhysicianName, one.Manufacturer, one.SeriesNumber = "", "m", 1
        one.SeriesDate, one.SeriesTime, one.PatientPosition, one.ImageType = "20200101", "000000", "HFS", [
            "ORIGINAL", "PRIMARY", "AXIAL"
        ]  # fmt: skip
        one.AcquisitionDate, one.AcquisitionTime, one.ContentDate, one.ContentTime = ("20200101", "000000") * 2
        one.PositionReferenceIndicator, one.SoftwareVersions = "", "1"
    made = highdicom.legacy.LegacyConvertedEnhancedCTImage(
        [files[k] for k in ORDER], pydicom.uid.generate_uid(), 2, pydicom.uid.generate_uid(), 1
    )
    made.save_as(tmp_path / "a.dcm")
    volume = opened(tmp_path / "a.dcm")
    assert volume.grid.shape == (24, 24, DEPTH)
    np.testing.assert_allclose(volume.grid.affine, np.diag([-2.0, -2.0, 3.0, 1.0]), atol=1e-6)
    for k in range(DEPTH):
        assert np.array_equal(volume.plane(2, k), values[..., k])


def test_of_phases_in_one_place_one_is_taken_by_its_time(tmp_path: Path) -> None:
    values, files, _ = series()
    enhanced(files, tmp_path / "a.dcm", phases=2)
    with pytest.raises(DataError, match="has up to 2 slices in one place"):
        opened(tmp_path / "a.dcm")
    first = opened(tmp_path / "a.dcm", phase=0)
    assert np.array_equal(first.plane(2, 2), 2.0 * (values[..., 2].astype(float) + 1024) - 1023)


def test_a_study_of_enhanced_files_is_that_of_single_ones(tmp_path: Path) -> None:
    for number in range(3):
        _, files, label = series(number)
        for one in files:
            one.RescaleSlope = 2
        for kind in ("single", "enhanced"):
            target = tmp_path / kind / f"p{number}"
            target.mkdir(parents=True)
            write_seg(target / "seg.dcm", files, label, {1: "lesion"})
        for k, one in enumerate(files):
            one.save_as(tmp_path / f"single/p{number}/{k}.dcm", enforce_file_format=True)
        enhanced(files, tmp_path / f"enhanced/p{number}/all.dcm")
    found = {}
    for kind in ("single", "enhanced"):
        config = VolumeData(kind="volumes", source=str(tmp_path / kind), window="lung")
        classes, records, _ = write_volumes(config, tmp_path / f"{kind}-out", Pseudonyms(b"salt"))
        for split, of in records.items():
            write_split(tmp_path / f"{kind}-out" / split, classes, of)
        found[kind] = {split: [r.sha256 for r in of] for split, of in records.items()}
    assert found["single"] == found["enhanced"]
    assert len(Split.open(tmp_path / "enhanced-out/test").records) == DEPTH


def test_a_file_of_frames_is_opened_for_a_prediction(tmp_path: Path) -> None:
    values, files, _ = series()
    enhanced(files, tmp_path / "a.dcm")
    volume, window, space = open_volume(tmp_path / "a.dcm", VolumeData(kind="volumes", source="."))
    assert (volume.grid.shape, window.level, space) == (values.shape, -600, "LPS")


def test_frames_without_a_place_are_no_slices(tmp_path: Path) -> None:
    _, files, _ = series()
    enhanced(files, tmp_path / "a.dcm")
    file = pydicom.dcmread(tmp_path / "a.dcm")
    del file.PerFrameFunctionalGroupsSequence[2]["PlanePositionSequence"]
    file.save_as(tmp_path / "a.dcm")
    headers = read_headers([tmp_path / "a.dcm"], str)
    (header,) = slices_of(headers.pictures, str)
    assert header.frame is None
    with pytest.raises(DataError, match=r"has 5 frames; say with `frame` which is meant, 0 to 4"):
        DicomPixels(str).plane(header)
