"""`cones predict` on a volume: slices in, a label map on its grid and a table of lesions out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cones.common.errors import ConceptError, DataError
from cones.data.folders import entries
from cones.inference.open import OpenConcept
from cones.readers.volumes.cut import Cut
from cones.readers.volumes.cutting import cut_of
from cones.readers.volumes.dicom import series_of
from cones.readers.volumes.enhanced import slices_of
from cones.readers.volumes.geometry import View
from cones.readers.volumes.headers import NO_PICTURES, read_headers
from cones.readers.volumes.pixels import DicomPixels, own_window
from cones.readers.volumes.series import Series, sorted_series
from cones.readers.volumes.settings import VolumeData, as_read
from cones.readers.volumes.volume import SeriesVolume, Volume, is_volume_file, open_file
from cones.tasks.detection.infer import Detections
from cones.tasks.detection.lesions import Found, FoundLesion, join_slices

AT_ONCE = 16
"""Slices that are predicted before the next are read."""


@dataclass(frozen=True)
class PredictedVolume:
    """What was found in a volume: its lesions, the surest first, and each slice's detections; the label map (i, j, k)
    has a value for each class, as `values` says, and is None where the Concept finds boxes alone."""

    lesions: list[FoundLesion]
    detections: list[Detections]
    cut: Cut
    volume: Volume
    label_map: np.ndarray | None
    space: str
    values: Mapping[str, int]

    @property
    def summary(self) -> str:
        told = ", ".join(f"{one.label} {one.score:.2f}" for one in self.lesions[:8])
        return f"{len(self.lesions)} lesions{': ' if told else ''}{told}{', ...' if len(self.lesions) > 8 else ''}"


def predict_volume(concept: OpenConcept, path: Path, threshold: float | None = None) -> PredictedVolume:
    """Find what a Concept finds in every slice of a volume, which is cut as those that it was searched on.

    Raises `ConceptError` for a Concept that was not searched on volumes or does not find objects, and `DataError` for
    what is no volume.
    """
    card = concept.card
    if card.reading is None:
        raise ConceptError(
            f"`{card.concept}` was searched on pictures, and {path} is a volume; search it on data of `kind: volumes`"
        )
    if card.task not in ("detection", "segmentation"):
        raise ConceptError(f"`{card.concept}` classifies patches around lesions; give it these as pictures")
    config = as_read(card.reading)
    volume, own, space = open_volume(path, config)
    places = range(volume.grid.shape[View.of(volume.grid, config.slices.axis).axis])
    cut = cut_of(config, volume, own, places, str(path))
    detections: list[Detections] = []
    for start in range(0, len(places), AT_ONCE):
        chunk = [Image.fromarray(cut.picture(volume, at)).convert("RGB") for at in places[start : start + AT_ONCE]]
        detections += concept.predict(chunk, threshold=threshold)
    lesions = join_slices([_found(one) for one in detections])
    known = {label: value for value, label in (config.labels or {}).items()}
    values = {name: known.get(name, i) for i, name in enumerate(card.classes, 1)}
    masks = label_map(detections, cut, volume, values) if card.task == "segmentation" else None
    return PredictedVolume(lesions, detections, cut, volume, masks, space, values)


def open_volume(path: Path, config: VolumeData) -> tuple[Volume, Any, str]:
    """A volume, the window of its file if it has one, and what its millimetres are called; `DataError` for what is not
    one volume."""
    if path.is_file() and is_volume_file(path):
        return open_file(path, str, config.volume_index), None, "RAS"
    files = [path] if path.is_file() else [p for p in entries(path) if p.is_file()]
    headers = read_headers(files, str)
    if headers.unreadable:
        raise DataError(headers.unreadable[0])
    if not headers.pictures:
        kinds = {NO_PICTURES.get(h.modality, "no picture") for h in headers.files}
        raise DataError(f"{path} is {' and '.join(sorted(kinds)) or 'no DICOM file'}, and not a volume to look at")
    found = series_of(slices_of(headers.pictures, str), str)
    if len(found) > 1:
        raise DataError(f"{path} holds {len(found)} series; give a folder with the one that is meant")
    series: Series = sorted_series(found[0], str, config.phase)
    return SeriesVolume(series, DicomPixels(str), config.frame), own_window(series.first), "LPS"


def label_map(detections: Sequence[Detections], cut: Cut, volume: Volume, values: Mapping[str, int]) -> np.ndarray:
    """Masks as one label map on the volume's grid, uint8 or wider; where two meet the surer one counts."""
    found = np.zeros(volume.grid.shape, np.uint8 if max(values.values()) < 256 else np.uint16)
    height, width = cut.view.size(volume.grid)
    top, left, bottom, right = cut.box
    for at, one in enumerate(detections):
        whole = np.zeros((height, width), found.dtype)
        for i in reversed(range(len(one))):  # the best comes last
            whole[top:bottom, left:right][cut.voxels(one.mask(i))] = values[one.labels[i]]
        index = [slice(None)] * 3
        index[cut.view.axis] = at  # type: ignore[call-overload]
        found[tuple(index)] = cut.view.plane(whole)
    return found


def _found(one: Detections) -> list[Found]:
    return [
        Found((b[0], b[1], b[2], b[3]), label, score, i)
        for i, (b, label, score) in enumerate(zip(one.boxes.tolist(), one.labels, one.scores.tolist()))
    ]
