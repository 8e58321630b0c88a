"""DICOM files by their headers, of which only the allow list is read, and which of them are one series."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cones.common.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

ALLOWED = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "PatientID", "PatientBirthDate", "PatientSex",
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing", "TriggerTime",
    "InstanceNumber", "WindowCenter", "WindowWidth", "BurnedInAnnotation", "ReferencedSeriesSequence",
    "ReferencedFrameOfReferenceSequence",
)  # fmt: skip
"""What is read of a header. Ids, dates and UIDs among it tell files apart, and never leave the reader."""
LABELS = {"SEG", "RTSTRUCT"}
NO_PICTURES = {"SEG": "a segmentation", "RTSTRUCT": "a set of contours", "SR": "a report", "KO": "a list of pictures",
               "PR": "a presentation", "RTPLAN": "a plan", "RTDOSE": "a dose"}  # fmt: skip
MAY_HAVE_TEXT = {"US", "SC", "XC", "ES", "OT", "IVUS", "GM", "SM"}
"""Modalities whose pixels often hold names, so that silence about it is no yes."""

Shown = Callable[[Path], str]
"""A file as it may be named in a message: by its pseudonym, and where a person looks on by its path."""


@dataclass(frozen=True)
class Header:
    """A DICOM file, or the `frame` of one that is a slice of its own, and what the allow list has of its header."""

    path: Path
    tags: "Dataset"
    frame: int | None = None

    def get(self, keyword: str, default: Any = None) -> Any:
        value = self.tags.get(keyword, default)
        return default if value is None or value == "" else value

    @property
    def modality(self) -> str:
        return str(self.get("Modality", "OT"))

    @property
    def patient(self) -> str:
        return str(self.get("PatientID", "")).strip()

    @property
    def frames(self) -> int:
        return int(self.get("NumberOfFrames", 1))


@dataclass
class Headers:
    """The DICOM files below a folder, and why others of them cannot be read."""

    files: list[Header] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @property
    def pictures(self) -> list[Header]:
        return [header for header in self.files if header.modality not in NO_PICTURES and header.get("Rows")]

    @property
    def labels(self) -> list[Header]:
        return [header for header in self.files if header.modality in LABELS]


def read_headers(paths: Iterable[Path], shown: Shown) -> Headers:
    """The headers of files; what is no DICOM is passed over, what is a broken or a packed one is told."""
    found = Headers()
    for path in paths:
        try:
            header = read_header(path, shown)
        except DataError as error:
            found.unreadable.append(str(error))
        else:
            found.files += [] if header is None else [header]
    return found


def read_header(path: Path, shown: Shown) -> Header | None:
    """The header of a file; None if it is no DICOM. `DataError` for one without a file meta header, for a packed one
    and for one that breaks off in its header."""
    with path.open("rb") as file:
        start = file.read(132)
    if start[:2] == b"\x1f\x8b" and ".dcm" in path.name.lower():
        raise DataError(f"{shown(path)} is packed by gzip; unpack it first")
    if start[128:] != b"DICM":
        if start[:2] in (b"\x08\x00", b"\x02\x00") or path.suffix.lower() == ".dcm":
            raise DataError(
                f"{shown(path)} has no file meta header, so that how its pixels are written is not told; export it "
                "anew as a DICOM file of part 10"
            )
        return None
    from pydicom import dcmread

    try:
        tags = dcmread(path, stop_before_pixels=True, specific_tags=list(ALLOWED))
        return (
            None
            if tags.file_meta.get("MediaStorageSOPClassUID", "").startswith("1.2.840.10008.1.3")
            else Header(path, tags)
        )
    except Exception as error:  # of a file from anywhere, in any way
        raise DataError(f"{shown(path)} cannot be read as DICOM ({type(error).__name__}); export it anew") from None


def series_of_label(header: Header) -> str:
    """The series that a label was made on; empty where it does not say."""
    referenced = header.get("ReferencedSeriesSequence") or [
        series
        for frame in header.get("ReferencedFrameOfReferenceSequence") or []
        for study in frame.get("RTReferencedStudySequence") or []
        for series in study.get("RTReferencedSeriesSequence") or []
    ]
    return str(referenced[0].get("SeriesInstanceUID", "")) if referenced else ""


def whole_file(header: Header, shown: Shown, pixels: bool = True) -> "Dataset":
    """All of a file, or all but its pixels; `DataError` for one that cannot be read."""
    from pydicom import dcmread

    try:
        return dcmread(header.path, stop_before_pixels=not pixels)
    except Exception as error:  # of a file from anywhere, in any way
        raise DataError(f"{shown(header.path)} cannot be read as DICOM ({type(error).__name__})") from None


def series_of(headers: Sequence[Header], shown: Shown) -> list[list[Header]]:
    """The files of each series of each patient, in the order of their files. An empty id is none: such files are of
    one series where they lie in one folder.

    `DataError` for a series of two patients.
    """
    found: dict[tuple[str, str], list[Header]] = defaultdict(list)
    patients: dict[str, Header] = {}
    for header in sorted(headers, key=lambda h: h.path):
        uid = str(header.get("SeriesInstanceUID", ""))
        key = uid or f"folder {header.path.parent}"
        first = patients.setdefault(key, header)
        if first.patient != header.patient:
            raise DataError(
                f"{shown(first.path)} and {shown(header.path)} are of one series and of two patients; put right the "
                "PatientID of one, or its SeriesInstanceUID"
            )
        found[header.patient, key].append(header)
    return list(found.values())


def refuse_two_people(headers: Iterable[Header], shown: Shown) -> None:
    """`DataError` where one id has two birth dates or two sexes: two people have it, or one of them is mistyped."""
    known: dict[tuple[str, str], tuple[str, Header]] = {}
    for header in headers:
        for keyword, what in (("PatientBirthDate", "birth dates"), ("PatientSex", "sexes")):
            value = str(header.get(keyword, "")).strip()
            if value and header.patient:
                other, first = known.setdefault((header.patient, keyword), (value, header))
                if other != value:
                    raise DataError(
                        f"{shown(first.path)} and {shown(header.path)} have one PatientID and two {what}, so that it "
                        "is not the id of one person; put it right, or name groups by `group_by: {pattern: ...}`"
                    )
