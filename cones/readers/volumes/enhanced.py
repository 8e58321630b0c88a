"""Enhanced DICOM: one file with the slices of a series as its frames, each with a place of its own."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cones.readers.volumes.dicom import whole_file
from cones.readers.volumes.headers import NO_PICTURES, Header, Shown

if TYPE_CHECKING:
    from pydicom import Dataset

GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
TOLD = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing",),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth"),
}
"""What is read of each functional group (PS3.3, C.7.6.16), as the header of a file with one slice has it."""


def slices_of(headers: Iterable[Header], shown: Shown) -> list[Header]:
    """A header for each slice: of a file whose frames all have a place each of them, of any other file its own."""
    return [one for header in headers for one in _frames(header, shown)]


def _frames(header: Header, shown: Shown) -> list[Header]:
    if header.frames == 1 or header.modality in NO_PICTURES:
        return [header]
    groups = whole_file(header, shown, pixels=False)
    shared, each = (groups.get(keyword) or [] for keyword in GROUPS)
    found = [_slice(header, number, [*shared, frame]) for number, frame in enumerate(each)]
    placed = len(found) == header.frames and all("ImagePositionPatient" in one.tags for one in found)
    return found if placed else [header]


def _slice(header: Header, number: int, groups: "list[Dataset]") -> Header:
    tags = {**header.tags, "InstanceNumber": number + 1, **dict(_values(groups))}
    return replace(header, tags=tags, frame=number)


def _values(groups: "list[Dataset]") -> Iterator[tuple[str, Any]]:
    """What the groups tell, the later ones last."""
    for group in groups:
        for sequence, keywords in TOLD.items():
            for item in group.get(sequence) or ():
                yield from ((keyword, item.get(keyword)) for keyword in keywords if item.get(keyword) is not None)
        for item in group.get("CardiacSynchronizationSequence") or ():
            if (delay := item.get("NominalCardiacTriggerDelayTime")) is not None:
                yield "TriggerTime", delay
