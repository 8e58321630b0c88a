"""`cones predict` on a volume: slices in, a label map on its grid and a table of lesions out."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cones.common.errors import ConceptError, DataError
from cones.common.files import fresh_file, write_picture
from cones.data.folders import entries
from cones.inference.open import OpenConcept
from cones.readers.volumes.cut import Cut, cut_of
from cones.readers.volumes.dicom import NO_PICTURES, read_headers, series_of
from cones.readers.volumes.pixels import DicomPixels, own_window
from cones.readers.volumes.series import Series, sorted_series
from cones.readers.volumes.settings import VolumeData, as_read
from cones.readers.volumes.volume import SeriesVolume, Volume, is_volume_file, open_file
from cones.tasks.detection.infer import Detections, drawn_picture
from cones.tasks.detection.lesions import Found, FoundLesion, join_slices
from cones.visuals.sheets import picture_rows

AT_ONCE = 16
"""Slices that are predicted before the next are read."""
SHOWN = 12
"""Slices of a contact sheet: those with the surest lesions."""
ACROSS, SIDE = 4, 320
"""Slices in a line of it, and pixels of each one's side."""
COLUMNS = (
    "lesion",
    "class",
    "score",
    "x_mm",
    "y_mm",
    "z_mm",
    "space",
    "i1",
    "j1",
    "k1",
    "i2",
    "j2",
    "k2",
    "slices",
    "mm3",
)


@dataclass(frozen=True)
class PredictedVolume:
    """What was found in a volume: its lesions, the surest first, and each slice's detections; the label map (i, j, k)
    has the values of `labels`, None where the Concept finds boxes alone."""

    lesions: list[FoundLesion]
    detections: list[Detections]
    cut: Cut
    volume: Volume
    label_map: np.ndarray | None
    space: str

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
    cut = cut_of(config, volume, own, range(volume.grid.shape[_axis(config, volume)]), str(path))
    places = list(range(volume.grid.shape[cut.view.axis]))
    detections: list[Detections] = []
    for start in range(0, len(places), AT_ONCE):
        chunk = [Image.fromarray(cut.picture(volume, at)) for at in places[start : start + AT_ONCE]]
        detections += concept.predict(chunk, threshold=threshold)
    lesions = join_slices([_found(one) for one in detections])
    values = {label: value for value, label in (config.labels or {}).items()}
    masks = None
    if card.task == "segmentation":
        masks = label_map(detections, cut, volume, values or {c: i for i, c in enumerate(card.classes, 1)})
    return PredictedVolume(lesions, detections, cut, volume, masks, space)


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
    found = series_of(headers.pictures, str)
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
            whole[top:bottom, left:right][one.mask(i)] = values[one.labels[i]]
        index = [slice(None)] * 3
        index[cut.view.axis] = at  # type: ignore[call-overload]
        found[tuple(index)] = cut.view.plane(whole)
    return found


def write_volume(found: PredictedVolume, path: Path, out: Path, classes: Sequence[str]) -> dict[str, Any]:
    """Write `X_seg.nii.gz`, `X_lesions.csv` and `X.jpg` of a volume X; returns what `predictions.json` has of it.

    The label map has a header of its own, with the grid and nothing else of the volume's file.
    """
    name = stem(path)
    lines = [dict(zip(COLUMNS, _line(i, lesion, found))) for i, lesion in enumerate(found.lesions, 1)]
    files = {"lesions_file": f"{name}_lesions.csv", "sheet": f"{name}.jpg"}
    if found.label_map is not None:
        files["label_map"] = f"{name}_seg.nii.gz"
        with fresh_file(out / files["label_map"]) as temporary:
            temporary.write_bytes(nifti_bytes(found.label_map, found.volume.grid.affine))
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(lines)
    with fresh_file(out / files["lesions_file"]) as temporary:
        temporary.write_text(text.getvalue())
    with fresh_file(out / files["sheet"]) as temporary:
        write_picture(temporary, _sheet(found, classes), quality=90)
    return {"volume": name, "shape": list(found.volume.grid.shape), **files, "lesions": lines}


def nifti_bytes(array: np.ndarray, affine: np.ndarray) -> bytes:
    """A NIfTI file, packed, with a fresh header."""
    import gzip

    import nibabel

    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), 6, mtime=0)


def _line(number: int, lesion: FoundLesion, found: PredictedVolume) -> tuple[Any, ...]:
    """A line of the table: the centre in mm, the box in voxels (the last one within), slices, and the volume."""
    grid, axis = found.volume.grid, found.cut.view.axis
    top, left = found.cut.box[:2]
    x1, y1, x2, y2 = lesion.box
    corners = []
    for row, column in ((y1, x1), (y2 - 1, x2 - 1)):
        plane = np.zeros(2)
        plane[:] = _array_place(found, row + top, column + left)
        corners.append(np.insert(plane, axis, 0))
    low, high = np.minimum(*corners), np.maximum(*corners)
    low[axis], high[axis] = min(lesion.parts), max(lesion.parts)
    x, y, z, _ = (grid.affine @ np.append((low + high) / 2, 1)).tolist()
    if found.space == "LPS":
        x, y = -x, -y
    voxel = abs(float(np.linalg.det(grid.affine[:3, :3])))
    voxels = 0.0
    for at, part in lesion.parts.items():
        one = found.detections[at]
        a, b, c, d = part.box
        voxels += float(one.mask(part.index).sum()) if one.regions is not None else (c - a) * (d - b)
    box = [*np.rint(low).astype(int).tolist(), *np.rint(high).astype(int).tolist()]
    centre = (round(v, 2) for v in (x, y, z))
    return (
        number,
        lesion.label,
        round(lesion.score, 4),
        *centre,
        found.space,
        *box,
        len(lesion.parts),
        round(voxels * voxel, 1),
    )


def _array_place(found: PredictedVolume, row: float, column: float) -> tuple[float, float]:
    """Where a row and a column of the whole slice lie along the array's two other axes."""
    view = found.cut.view
    height, width = view.size(found.volume.grid)
    y = height - 1 - row if view.flip[0] else row
    x = width - 1 - column if view.flip[1] else column
    return (x, y) if view.swap else (y, x)


def _found(one: Detections) -> list[Found]:
    return [
        Found((b[0], b[1], b[2], b[3]), label, score, i)
        for i, (b, label, score) in enumerate(zip(one.boxes.tolist(), one.labels, one.scores.tolist()))
    ]


def _axis(config: VolumeData, volume: Volume) -> int:
    from cones.readers.volumes.geometry import View

    return View.of(volume.grid, config.slices.axis).axis


def _sheet(found: PredictedVolume, classes: Sequence[str]) -> Image.Image:
    """The slices with the surest lesions, as drawn pictures, in their order; without any, some of all."""
    surest = dict.fromkeys(max(one.parts, key=lambda at: one.parts[at].score) for one in found.lesions)
    places = sorted(list(surest)[:SHOWN]) or np.linspace(0, len(found.detections) - 1, 4).astype(int).tolist()
    drawn = [drawn_picture(Image.fromarray(found.cut.picture(found.volume, at)), found.detections[at], classes)
             for at in places]  # fmt: skip
    rows = range(0, len(places), ACROSS)
    told = [(f"slices {', '.join(map(str, places[i : i + ACROSS]))}", drawn[i : i + ACROSS]) for i in rows]
    return picture_rows(told, SIDE)


def stem(path: Path) -> str:
    """The name of a volume's file or folder, without what says its format."""
    name = path.name
    for suffix in (".nii.gz", ".nii", ".mgz", ".mgh", ".dcm"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name
