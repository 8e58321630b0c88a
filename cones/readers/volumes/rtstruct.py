"""RTSTRUCT: contours in mm around regions of interest (ROIs), as masks on the series that they were drawn on."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, UInt16

from cones.common.errors import DataError
from cones.data.masks import mask_bounds
from cones.readers.volumes.contours import filled
from cones.readers.volumes.dicom import whole_file
from cones.readers.volumes.headers import Header, Shown
from cones.readers.volumes.seg import NEAR, joined
from cones.readers.volumes.series import Series

AREAS = {"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"}
"""Kinds of contours that enclose something. Those of one ROI in one slice are combined by even-odd in both: DICOM's
newer kind says so, and of the older one some are holes."""


def roi_names(header: Header, shown: Shown) -> dict[int, str]:
    """What each ROI that has contours is called, by its number."""
    tags = whole_file(header, shown)
    drawn = {int(roi.ReferencedROINumber) for roi in tags.get("ROIContourSequence", []) if roi.get("ContourSequence")}
    names = {int(roi.ROINumber): str(roi.get("ROIName", "")) for roi in tags.get("StructureSetROISequence", [])}
    return {number: names.get(number, "") for number in sorted(drawn)}


def roi_maps(
    header: Header, series: Series, values: Mapping[str, int], shown: Shown
) -> Iterator[tuple[UInt16[np.ndarray, "a b c"], tuple[int, int, int]]]:
    """A label map of each ROI that `values` names, as ROIs may lie on each other: of the box around it, and where that
    begins in the series (i, j, k).

    `DataError` for a contour that encloses nothing, that lies on no slice of the series or beside its pictures, and for
    contours of one ROI at two heights of one slice.
    """
    names = roi_names(header, shown)
    columns, rows, _ = series.grid.shape
    for roi in whole_file(header, shown).get("ROIContourSequence", []):
        number = int(roi.ReferencedROINumber)
        if names.get(number) not in values:
            continue
        what, parts = f"the ROI {number} of {shown(header.path)}", []
        for at, polygons in _by_slice(roi, series, what).items():
            try:
                inside = filled(polygons, (rows, columns))
            except ValueError as error:
                raise DataError(
                    f"{what} has a contour in slice {at + 1} that is none of its series: {error}; draw it again on it"
                ) from None
            if bounds := mask_bounds(inside):
                top, left, bottom, right = bounds
                parts.append((at, (left, top), inside[top:bottom, left:right].T, values[names[number]]))
        yield joined(parts, what)


def _by_slice(roi: Any, series: Series, what: str) -> dict[int, list[Float[np.ndarray, "n 2"]]]:
    """The contours of a ROI in each slice, in pixels."""
    back = np.linalg.inv(series.grid.affine)
    found: dict[int, list[np.ndarray]] = defaultdict(list)
    heights: dict[int, float] = {}
    for contour in roi.ContourSequence:
        kind = str(contour.get("ContourGeometricType", ""))
        if kind not in AREAS:
            raise DataError(
                f"{what} has a contour of the kind {kind or 'none'}, which encloses nothing; take the ROI out, or name "
                "those that count in `labels`"
            )
        numbers = np.array(contour.get("ContourData") or [], float)
        if not len(numbers) or len(numbers) % 3 or not np.isfinite(numbers).all():
            raise DataError(f"{what} has a contour of {len(numbers)} numbers, and not x, y, z a point; draw it again")
        places = numbers.reshape(-1, 3) * (-1.0, -1.0, 1.0)  # DICOM's x and y run to the left and to the back
        pixels = places @ back[:3, :3].T + back[:3, 3]
        along = pixels[:, 2]
        at = round(float(along.mean()))
        if abs(along - at).max() > 0.5 or not 0 <= at < series.grid.shape[2]:
            raise DataError(
                f"{what} has a contour that lies on no slice of its series: it goes from slice {along.min() + 1:.1f} "
                f"to {along.max() + 1:.1f}, of {series.grid.shape[2]}; draw it again on the series"
            )
        if abs(heights.setdefault(at, float(along.mean())) - along.mean()) > NEAR:
            raise DataError(
                f"{what} has contours at two heights that fall into slice {at + 1}, as if drawn on a finer series; "
                "draw it again on this one"
            )
        found[at].append(pixels[:, :2])
    return found
