"""DICOM files as series: told apart by their headers, of which only the allow list is read, and checked on them."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cones.common.errors import DataError
from cones.readers.volumes.geometry import Grid

if TYPE_CHECKING:
    from pydicom import Dataset

ALLOWED = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "PatientID", "PatientBirthDate", "PatientSex",
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing", "TriggerTime",
    "InstanceNumber", "WindowCenter", "WindowWidth", "BurnedInAnnotation", "ReferencedSeriesSequence",
)  # fmt: skip
"""What is read of a header. Ids, dates and UIDs among it tell files apart, and never leave the reader."""
LABELS = {"SEG", "RTSTRUCT"}
NO_PICTURES = {"SEG": "a segmentation", "RTSTRUCT": "a set of contours", "SR": "a report", "KO": "a list of pictures",
               "PR": "a presentation", "RTPLAN": "a plan", "RTDOSE": "a dose"}  # fmt: skip
MAY_HAVE_TEXT = {"US", "SC", "XC", "ES", "OT", "IVUS", "GM", "SM"}
"""Modalities whose pixels often hold names, so that silence about it is no yes."""
UNEVEN, APART, TILT = 0.05, 0.01, 0.1
"""Share of a step by which steps may differ; millimetres between two places; millimetres that slices may slide."""

Shown = Callable[[Path], str]
"""A file as it may be named in a message: by its pseudonym, and where a person looks on by its path."""


@dataclass(frozen=True)
class Header:
    """A DICOM file and what the allow list has of its header."""

    path: Path
    tags: "Dataset"

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


@dataclass(frozen=True)
class Series:
    """The files of one volume, sorted along the normal of its slices, and where its voxels are."""

    headers: tuple[Header, ...]
    grid: Grid
    position_known: bool = True

    @property
    def first(self) -> Header:
        return self.headers[0]


@dataclass
class Headers:
    """The DICOM files below a folder, and what else lies there."""

    files: list[Header] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    others: int = 0

    @property
    def pictures(self) -> list[Header]:
        return [header for header in self.files if header.modality not in NO_PICTURES and header.get("Rows")]

    @property
    def labels(self) -> list[Header]:
        return [header for header in self.files if header.modality in LABELS]


def read_headers(paths: Iterable[Path], shown: Shown) -> Headers:
    """The headers of files; what is no DICOM is counted, what is a broken or a packed one is told."""
    found = Headers()
    for path in paths:
        try:
            header = read_header(path, shown)
        except DataError as error:
            found.unreadable.append(str(error))
            continue
        if header is None:
            found.others += 1
        else:
            found.files.append(header)
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


def sorted_series(headers: Sequence[Header], shown: Shown, phase: int | None = None) -> Series:
    """A series in the order of its slices, and its grid, all from positions.

    `DataError` for sizes or orientations that differ, a missing slice, two in one place, slices that slide against
    each other (a tilted gantry), and several files without a position.
    """
    first = headers[0]
    name = f"the series of {shown(first.path)}"
    for keyword, what in (("Rows", "heights"), ("Columns", "widths"), ("SamplesPerPixel", "colours")):
        values = Counter(header.get(keyword) for header in headers)
        if len(values) > 1:
            raise DataError(
                f"{name} has slices of {len(values)} {what} ({_few(values)}); keep those of one in `source`"
            )
    size = int(first.get("Columns")), int(first.get("Rows"))
    spacing = first.get("PixelSpacing") or first.get("ImagerPixelSpacing") or (1.0, 1.0)
    down, across = (float(s) for s in spacing)
    if not (down > 0 and across > 0):
        raise DataError(f"{name} has pixels of {down:g} x {across:g} mm; put right its PixelSpacing")
    if any(header.get("ImagePositionPatient") is None or header.get("ImageOrientationPatient") is None
           for header in headers):  # fmt: skip
        if len(headers) > 1:
            raise DataError(
                f"{name} has {len(headers)} files and no position in one of them, so that their order is not known; "
                "give each a series of its own, or export them with positions"
            )
        return Series(tuple(headers), Grid((*size, 1), np.diag([-across, -down, 1.0, 1.0])), position_known=False)
    turns = np.array([header.get("ImageOrientationPatient") for header in headers], float)
    if not np.isfinite(turns).all() or abs(turns - turns[0]).max() > 1e-3:
        raise DataError(
            f"{name} has slices of several orientations, so that it is no volume (a localiser, or slices that turn); "
            "take it out of `source`"
        )
    row, column = turns[0, :3], turns[0, 3:]
    normal = np.cross(row, column)
    places = np.array([header.get("ImagePositionPatient") for header in headers], float)
    order = np.argsort(places @ normal, kind="stable")
    order = _one_phase(headers, places @ normal, order, phase, name)
    places, ordered = places[order], tuple(headers[i] for i in order)
    step = _step(places, normal, name)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2], affine[:3, 3] = row * across, column * down, step, places[0]
    affine[:2] *= -1  # DICOM's x and y run to the left and to the back
    return Series(ordered, Grid((*size, len(ordered)), affine))


def _one_phase(headers: Sequence[Header], along: np.ndarray, order: np.ndarray, phase: int | None, name: str) -> Any:
    """The order with one file for each place: the `phase`-th by time where there are several."""
    starts = np.flatnonzero(np.diff(along[order], prepend=-np.inf) > APART)
    groups = np.split(order, starts[1:])
    several = max(len(group) for group in groups)
    if several == 1 and not phase:
        return order
    if phase is None:
        raise DataError(
            f"{name} has up to {several} slices in one place; take copies out of `source`, or, where they are phases "
            "of time, name one with `phase`, counted from 0"
        )
    fewest = min(len(group) for group in groups)
    if phase >= fewest:
        raise DataError(
            f"{name} has {fewest} slices in one of its places, so `phase` can be 0 to {fewest - 1}, got {phase}"
        )

    def time(i: int) -> tuple[float, int]:
        return float(headers[i].get("TriggerTime", 0)), int(headers[i].get("InstanceNumber", 0))

    return [sorted(group.tolist(), key=time)[phase] for group in groups]


def _step(places: np.ndarray, normal: np.ndarray, name: str) -> np.ndarray:
    """The way from one slice to the next, in mm."""
    if len(places) == 1:
        return normal
    steps = np.diff(places, axis=0)
    along = steps @ normal
    usual = float(np.median(along))
    wrong = np.flatnonzero(abs(along - usual) > UNEVEN * usual)
    if len(wrong):
        at = wrong[0]
        raise DataError(
            f"{name} has an uneven gap: slices {at + 1} and {at + 2} of {len(places)} are {along[at]:.2f} mm apart, "
            f"and others {usual:.2f}; bring the slices that lack, or take it out of `source`"
        )
    if abs(steps - along[:, None] * normal).max() > TILT:
        raise DataError(
            f"{name} was taken with a tilted gantry: its slices slide against each other; resample it to upright slices"
        )
    return (places[-1] - places[0]) / (len(places) - 1)


def _few(values: Iterable[Any]) -> str:
    listed = [str(value) for value in values]
    return ", ".join(listed[:4]) + ("..." if len(listed) > 4 else "")
