"""DICOM files written from arrays: a CT series, and a segmentation object (SEG) on a series."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int16, Shaped

if TYPE_CHECKING:
    from pydicom import Dataset

CT, SEG = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.66.4"
SAME = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "FrameOfReferenceUID", "Rows",
    "Columns",
)  # fmt: skip
"""What a segmentation object has of the series that it was made on."""
INTERCEPT = -1024


def series_files(
    values: Int16[np.ndarray, "i j k"], spacing: tuple[float, float, float], about: Mapping[str, Any]
) -> "list[Dataset]":
    """The files of a CT series of HU, upright, from the feet to the head; `about` are more tags."""
    from pydicom import Dataset
    from pydicom.uid import generate_uid

    across, down, step = spacing
    series, study, frame = (generate_uid(entropy_srcs=[what, *map(str, about.values())]) for what in ("a", "b", "c"))
    files = []
    for k in range(values.shape[2]):
        file = _file(CT, generate_uid(entropy_srcs=[series, str(k)]))
        for keyword, value in about.items():
            setattr(file, keyword, value)
        file.SeriesInstanceUID, file.StudyInstanceUID, file.FrameOfReferenceUID = series, study, frame
        file.InstanceNumber = values.shape[2] - k
        file.ImagePositionPatient = [0.0, 0.0, round(k * step, 4)]
        file.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        file.PixelSpacing, file.SliceThickness = (
            [round(down, 4), round(across, 4)],
            2 * step,
        )  # overlapping, as many are
        file.RescaleSlope, file.RescaleIntercept, file.RescaleType = 1, INTERCEPT, "HU"
        file.WindowCenter, file.WindowWidth = 40, 400
        file.Rows, file.Columns, file.SamplesPerPixel = values.shape[1], values.shape[0], 1
        file.PhotometricInterpretation, file.PixelRepresentation = "MONOCHROME2", 0
        file.BitsAllocated, file.BitsStored, file.HighBit = 16, 16, 15
        file.PixelData = (values[:, :, k].T - INTERCEPT).astype("<u2").tobytes()
        file.add_new((0x0009, 0x0010), "LO", "CONES SCANNER")
        file.add_new((0x0009, 0x1001), "LO", str(about.get("PatientName", "")))
        files.append(file)
    assert all(isinstance(file, Dataset) for file in files)
    return files


def write_seg(
    path: Path, series: "Sequence[Dataset]", label: Shaped[np.ndarray, "i j k"], names: Mapping[int, str]
) -> None:
    """A binary segmentation object of a label map on the files of a series, in the order of its slices; frames that
    hold nothing are left out."""
    from pydicom import Dataset
    from pydicom.pixels import pack_bits
    from pydicom.uid import generate_uid

    first = series[0]
    file = _file(SEG, generate_uid(entropy_srcs=[first.SeriesInstanceUID, "seg"]))
    for keyword in SAME:
        setattr(file, keyword, first.get(keyword))
    file.Modality, file.SegmentationType = "SEG", "BINARY"
    file.SeriesInstanceUID = generate_uid(entropy_srcs=[first.SeriesInstanceUID, "seg series"])
    file.ReferencedSeriesSequence = [_dataset(SeriesInstanceUID=first.SeriesInstanceUID)]
    there = [value for value in sorted(names) if (label == value).any()]
    file.SegmentSequence = [
        _dataset(SegmentNumber=number, SegmentLabel=names[value], SegmentAlgorithmType="MANUAL")
        for number, value in enumerate(there, 1)
    ]
    measures = _dataset(PixelSpacing=first.PixelSpacing, SliceThickness=first.SliceThickness)
    shared = Dataset()
    shared.PlaneOrientationSequence = [_dataset(ImageOrientationPatient=first.ImageOrientationPatient)]
    shared.PixelMeasuresSequence = [measures]
    file.SharedFunctionalGroupsSequence = [shared]
    frames, places = [], []
    for number, value in enumerate(there, 1):
        for k in np.flatnonzero((label == value).any((0, 1))).tolist():
            frames.append((label[:, :, k] == value).T)
            about = Dataset()
            about.PlanePositionSequence = [_dataset(ImagePositionPatient=series[k].ImagePositionPatient)]
            about.SegmentIdentificationSequence = [_dataset(ReferencedSegmentNumber=number)]
            places.append(about)
    file.PerFrameFunctionalGroupsSequence, file.NumberOfFrames = places, len(frames)
    file.SamplesPerPixel, file.PhotometricInterpretation, file.PixelRepresentation = 1, "MONOCHROME2", 0
    file.BitsAllocated, file.BitsStored, file.HighBit = 1, 1, 0
    file.PixelData = pack_bits(np.array(frames, np.uint8).ravel())
    file.save_as(path, enforce_file_format=True)


def _file(kind: str, uid: str) -> "Dataset":
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(kind), UID(uid)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = kind, uid
    return file


def _dataset(**tags: Any) -> "Dataset":
    from pydicom import Dataset

    found = Dataset()
    for keyword, value in tags.items():
        setattr(found, keyword, value)
    return found
