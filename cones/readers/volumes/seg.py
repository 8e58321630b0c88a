"""DICOM's own labels: a segmentation object (SEG) as a label map on the grid of the series that it was made on."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cones.common.errors import DataError
from cones.common.escaping import one_line
from cones.readers.volumes.dicom import Header, Shown, whole_file
from cones.readers.volumes.series import Series

HALF = 0.5
"""Share from which on a voxel of a fractional segmentation is marked."""
NEAR = 0.05
"""Shares of a slice's step by which a frame may lie beside its slice."""


def segment_names(header: Header, shown: Shown) -> dict[int, str]:
    """What each segment of a SEG is called."""
    return {int(s.SegmentNumber): str(s.SegmentLabel) for s in whole_file(header, shown).SegmentSequence}


def label_map(header: Header, series: Series, shown: Shown, values: Mapping[str, int] | None = None) -> np.ndarray:
    """The label map (i, j, k) of a SEG: the number of the segment, or what `values` has for its name.

    Frames that are not stored hold nothing. `DataError` for a frame that lies on no slice of the series, for segments
    that overlap, and for pixels that cannot be read.
    """
    tags, name = whole_file(header, shown), shown(header.path)
    columns, rows, count = series.grid.shape
    if (int(tags.Rows), int(tags.Columns)) != (rows, columns):
        raise DataError(
            f"{name} has frames of {tags.Columns} x {tags.Rows}, and its series of {columns} x {rows} pixels"
        )
    try:
        frames = np.asarray(tags.pixel_array).reshape(-1, rows, columns)
    except Exception as error:  # a decoder fails in any way
        raise DataError(f"the pixels of {name} cannot be read: {one_line(str(error), 200)}; export it anew") from None
    most = int(tags.get("MaximumFractionalValue", 1)) if tags.SegmentationType == "FRACTIONAL" else 1
    names = {int(s.SegmentNumber): str(s.SegmentLabel) for s in tags.SegmentSequence}
    back = np.linalg.inv(series.grid.affine)
    found = np.zeros(series.grid.shape, np.uint16)
    for frame, about in zip(frames, tags.PerFrameFunctionalGroupsSequence):
        k = _slice_of(about, tags, back, count, name)
        number = int(about.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        value = number if values is None else values.get(names[number], 0)
        marked = (frame >= HALF * most).T
        if not value:
            raise DataError(f"{name} has the segment {number}, which `labels` does not name; add it there")
        before = found[..., k][marked]
        if ((before != 0) & (before != value)).any():
            raise DataError(
                f"{name} has segments that overlap, which no label map can hold; give each a SEG of its own"
            )
        found[..., k][marked] = value
    return found


def _slice_of(about: Any, tags: Any, back: np.ndarray, count: int, name: str) -> int:
    """The slice of the series that a frame lies on."""
    place = about.get("PlanePositionSequence") or tags.SharedFunctionalGroupsSequence[0].PlanePositionSequence
    x, y, z = (float(v) for v in place[0].ImagePositionPatient)
    i, j, k, _ = (back @ np.array([-x, -y, z, 1.0])).tolist()
    if abs(k - round(k)) > NEAR or not 0 <= round(k) < count or max(abs(i), abs(j)) > 0.5:
        raise DataError(
            f"{name} has a frame at ({x:g}, {y:g}, {z:g}) mm, where its series has no slice; make it again on it"
        )
    return round(k)
