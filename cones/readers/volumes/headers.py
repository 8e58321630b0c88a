"""The headers of DICOM files, of which only an allow list is read."""

import warnings
from collections.abc import Callable, Iterable, Mapping, MutableSequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cones.common.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

ALLOWED = (
    "SeriesInstanceUID", "Modality", "PatientID", "PatientBirthDate", "PatientSex",
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing", "TriggerTime",
    "InstanceNumber", "WindowCenter", "WindowWidth", "BurnedInAnnotation", "BitsStored", "PixelRepresentation",
    "RescaleSlope", "RescaleIntercept", "PixelPaddingValue",
)  # fmt: skip
"""What is read of a header. Ids, dates and UIDs among it tell files apart, and never leave the reader."""
REFERENCES = ("ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence")
"""Where a label says which series it was made on."""
GREY = {"MONOCHROME1", "MONOCHROME2"}
UNDEFINED = 0xFFFFFFFF
"""What a value of packed pixels, or another one of no length that is told, has in the place of its length."""
DEFERRED = 4096
"""Bytes from which on a value, as that of the pixels, stays in its file until it is asked for."""
DIRECTORY = "1.2.840.10008.1.3"
"""How the class of a DICOMDIR begins."""
LABELS = {"SEG", "RTSTRUCT"}
NO_PICTURES = {"SEG": "a segmentation", "RTSTRUCT": "a set of contours", "SR": "a report", "KO": "a list of pictures",
               "PR": "a presentation", "RTPLAN": "a plan", "RTDOSE": "a dose"}  # fmt: skip
MAY_HAVE_TEXT = {"US", "SC", "XC", "ES", "OT", "IVUS", "GM", "SM"}
"""Modalities whose pixels often hold names, so that silence about it is no yes."""

Shown = Callable[[Path], str]
"""A file as it may be named in a message: by its pseudonym, and where a person looks on by its path."""


@dataclass(frozen=True)
class Stored:
    """The pixels of a file: where in it they begin, their bytes if they are not packed, and pydicom's options for
    decoding them."""

    offset: int
    length: int | None
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Header:
    """A DICOM file, or the `frame` of one that is a slice of its own: what its header has of the allow list as numbers
    and text, several in a tuple, its transfer syntax, the series that it refers to, if it is a label, and its pixels,
    if they are one grey picture."""

    path: Path
    tags: Mapping[str, Any]
    syntax: str
    of_series: str = ""
    stored: Stored | None = None
    frame: int | None = None

    def get(self, keyword: str, default: Any = None) -> Any:
        return self.tags.get(keyword, default)

    @cached_property
    def modality(self) -> str:
        return str(self.get("Modality", "OT"))

    @cached_property
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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tags beside the standard; what counts is checked
            of = _reader().read(path)
            if of.file_meta.get("MediaStorageSOPClassUID", "").startswith(DIRECTORY):
                return None
            tags = {keyword: value for keyword in ALLOWED if (value := _plain(of.get(keyword))) not in (None, "", ())}
            series = _series_of_label(of) if tags.get("Modality") in LABELS else ""
            return Header(path, tags, str(of.file_meta.get("TransferSyntaxUID", "")), series, _stored(of, tags))
    except Exception as error:  # of a file from anywhere, in any way
        raise DataError(f"{shown(path)} cannot be read as DICOM ({type(error).__name__}); export it anew") from None


@cache
def _reader() -> Any:
    from monai.data.image_reader import PydicomReader
    from pydicom.tag import Tag

    wanted = [*ALLOWED, *REFERENCES, "PixelData"]
    return PydicomReader(defer_size=DEFERRED, specific_tags=[Tag(keyword) for keyword in wanted])


def _plain(value: Any) -> Any:
    """A value of a tag as plain numbers and text."""
    if isinstance(value, MutableSequence):
        return tuple(map(_plain, value))
    return next((kind(value) for kind in (int, float, str) if isinstance(value, kind)), value)


def _stored(of: "Dataset", tags: Mapping[str, Any]) -> Stored | None:
    """The one grey picture of a file, if its pixels are that and are not deflated together with its header."""
    from pydicom.pixels.utils import as_pixel_options
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    pixels: Any = of.get_item("PixelData", keep_deferred=True)
    grey = tags.get("PhotometricInterpretation") in GREY and tags.get("NumberOfFrames", 1) == 1
    if pixels is None or not grey or of.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
        return None
    options = {name: _plain(value) for name, value in as_pixel_options(of).items()}
    length = None if pixels.length == UNDEFINED else pixels.length
    return Stored(pixels.value_tell, length, options | {"pixel_keyword": "PixelData", "pixel_vr": pixels.VR})


def _series_of_label(of: "Dataset") -> str:
    """The series that a label was made on; empty where it does not say."""
    referenced = of.get("ReferencedSeriesSequence") or [
        series
        for frame in of.get("ReferencedFrameOfReferenceSequence") or []
        for study in frame.get("RTReferencedStudySequence") or []
        for series in study.get("RTReferencedSeriesSequence") or []
    ]
    return str(referenced[0].get("SeriesInstanceUID", "")) if referenced else ""
