"""DICOM's own labels: a segmentation object (SEG) as a label map on the grid of the series that it was made on."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt16

from cones.common.errors import DataError
from cones.common.escaping import one_line
from cones.data.masks import mask_bounds
from cones.readers.volumes.dicom import whole_file
from cones.readers.volumes.headers import Header, Shown
from cones.readers.volumes.series import Series

HALF = 0.5
"""Share from which on a voxel of a fractional segmentation is marked."""
NEAR = 0.05
"""Shares of a slice's step by which a frame may lie beside its slice."""


def segment_names(header: Header, shown: Shown) -> dict[int, str]:
    """What each segment of a SEG is called."""
    return {int(s.SegmentNumber): str(s.SegmentLabel) for s in whole_file(header, shown, pixels=False).SegmentSequence}


def label_map(
    header: Header, series: Series, shown: Shown, values: Mapping[str, int] | None = None
) -> tuple[UInt16[np.ndarray, "a b c"], tuple[int, int, int]]:
    """The label map of a SEG: the number of the segment, or what `values` has for its name; of the box around all that
    is marked, and where that begins in the series (i, j, k).

    Frames that are not stored hold nothing. `DataError` for a frame that lies on no slice of the series, for segments
    that overlap, and for pixels that cannot be read.
    """
    tags, name = whole_file(header, shown), shown(header.path)
    columns, rows, count = series.grid.shape
    if (int(tags.Rows), int(tags.Columns)) != (rows, columns):
        raise DataError(
            f"{name} has frames of {tags.Columns} x {tags.Rows}, and its series of {columns} x {rows} pixels"
        )
    names = {int(s.SegmentNumber): str(s.SegmentLabel) for s in tags.SegmentSequence}
    back = np.linalg.inv(series.grid.affine)
    parts: list[tuple[int, tuple[int, int], np.ndarray, int]] = []
    for frame, about in zip(_frames(tags, name), tags.PerFrameFunctionalGroupsSequence):
        k = _slice_of(about, tags, back, count, name)
        number = int(about.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        value = number if values is None else values.get(names[number], 0)
        if not value:
            raise DataError(f"{name} has the segment {number}, which `labels` does not name; add it there")
        if bounds := mask_bounds(frame):
            top, left, bottom, right = bounds
            parts.append((k, (left, top), frame[top:bottom, left:right].T.copy(), value))
    return joined(parts, name)


def joined(
    parts: Sequence[tuple[int, tuple[int, int], np.ndarray, int]], name: str
) -> tuple[UInt16[np.ndarray, "a b c"], tuple[int, int, int]]:
    """Parts of slices, each at its k and its first (i, j) and of one value, in the box around them, and its corner.

    `DataError` for parts of several values that overlap.
    """
    if not parts:
        return np.zeros((0, 0, 0), np.uint16), (0, 0, 0)
    first = np.array([(*corner, k) for k, corner, _, _ in parts])
    last = first + np.array([(*part.shape, 1) for _, _, part, _ in parts])
    i, j, below = first.min(0).tolist()
    found = np.zeros(last.max(0) - first.min(0), np.uint16)
    for k, (left, top), part, value in parts:
        place = found[left - i : left - i + part.shape[0], top - j : top - j + part.shape[1], k - below]
        if (part & (place != 0) & (place != value)).any():
            raise DataError(
                f"{name} has segments that overlap, which no label map can hold; give each a SEG of its own"
            )
        place[part] = value
    return found, (i, j, below)


def _frames(tags: Any, name: str) -> Iterator[Bool[np.ndarray, "h w"]]:
    """What each frame marks, one after the other, as all of them may be large."""
    from pydicom.pixels import iter_pixels

    most = int(tags.get("MaximumFractionalValue", 1)) if tags.SegmentationType == "FRACTIONAL" else 1
    try:
        for frame in iter_pixels(tags):
            yield frame >= HALF * most
    except Exception as error:  # a decoder fails in any way
        raise DataError(f"the pixels of {name} cannot be read: {one_line(str(error), 200)}; export it anew") from None


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
