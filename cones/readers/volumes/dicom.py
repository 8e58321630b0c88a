"""DICOM files of several: which are one series, and whether those of one id are of one person."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cones.common.errors import DataError
from cones.readers.volumes.headers import Header, Shown

if TYPE_CHECKING:
    from pydicom import Dataset


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
