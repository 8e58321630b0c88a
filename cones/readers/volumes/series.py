"""A DICOM series as a volume: in the order of its slices, on a grid that its positions tell."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cones.common.errors import DataError
from cones.readers.volumes.geometry import Grid
from cones.readers.volumes.headers import Header, Shown

UNEVEN, APART, TILT = 0.05, 0.01, 0.1
"""Share of a step by which steps may differ; millimetres between two places; millimetres that slices may slide."""


@dataclass(frozen=True)
class Series:
    """The files of one volume, sorted along the normal of its slices, and where its voxels are."""

    headers: tuple[Header, ...]
    grid: Grid

    @property
    def first(self) -> Header:
        return self.headers[0]


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
        return Series(tuple(headers), Grid((*size, 1), np.diag([-across, -down, 1.0, 1.0])))
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
    groups = _places(along, order)
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


def phase_count(headers: Sequence[Header], shown: Shown) -> int:
    """How many images a series has in each of its places; `DataError` where it has more in some than in others."""
    row, column = np.split(np.array(headers[0].get("ImageOrientationPatient") or (1, 0, 0, 0, 1, 0), float), 2)
    places = [header.get("ImagePositionPatient") for header in headers]
    if any(place is None for place in places):
        return 1
    along = np.array(places, float) @ np.cross(row, column)
    counts = [len(group) for group in _places(along, np.argsort(along, kind="stable"))]
    if max(counts) > min(counts):
        raise DataError(
            f"the series of {shown(headers[0].path)} has {min(counts)} images in one place and {max(counts)} in "
            "another, so that their phases are not known; bring those that lack"
        )
    return counts[0]


def _places(along: np.ndarray, order: np.ndarray) -> list[np.ndarray]:
    """The images of each place along the normal."""
    starts = np.flatnonzero(np.diff(along[order], prepend=-np.inf) > APART)
    return np.split(order, starts[1:])


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
