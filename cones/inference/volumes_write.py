"""What `cones predict` leaves of a volume: a label map on its grid, a table of lesions, a sheet and, if asked, SEG."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cones.common.errors import ConceptError, DataError
from cones.common.files import fresh_file, write_picture
from cones.inference.volumes import PredictedVolume
from cones.readers.volumes.volume import SeriesVolume, stem
from cones.tasks.detection.infer import drawn_picture
from cones.tasks.detection.lesions import FoundLesion
from cones.visuals.patients import RESEARCH
from cones.visuals.sheets import picture_rows

SHOWN = 12
"""Slices of a contact sheet: those with the surest lesions."""
MAY_BE_EMPTY = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
                "StudyTime", "ReferringPhysicianName")  # fmt: skip
"""What a DICOM file has in any case by the standard, if only as an empty text, and many have not."""
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


def write_volume(
    found: PredictedVolume, path: Path, out: Path, classes: Sequence[str], dicom_seg: bool = False
) -> dict[str, Any]:
    """Write `X_seg.nii.gz`, `X_lesions.csv` and `X.jpg` of a volume X; returns what `predictions.json` has of it.

    The label map has a header of its own, with the grid and nothing else of the volume's file. With `dicom_seg` it is
    also written as `X_seg.dcm`, which has the patient's name, as the standard wants it.
    """
    seg = dicom_seg_of(found) if dicom_seg else None
    name = stem(path)
    lines = [dict(zip(COLUMNS, _line(i, lesion, found))) for i, lesion in enumerate(found.lesions, 1)]
    files = {"lesions_file": f"{name}_lesions.csv", "sheet": f"{name}.jpg"}
    if found.label_map is not None:
        files["label_map"] = f"{name}_seg.nii.gz"
        with fresh_file(out / files["label_map"]) as temporary:
            temporary.write_bytes(nifti_bytes(found.label_map, found.volume.grid.affine))
    if seg is not None:
        files["dicom_seg"] = f"{name}_seg.dcm"
        with fresh_file(out / files["dicom_seg"]) as temporary:
            seg.save_as(temporary)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(lines)
    with fresh_file(out / files["lesions_file"]) as temporary:
        temporary.write_text(text.getvalue())
    with fresh_file(out / files["sheet"]) as temporary:
        write_picture(temporary, _sheet(found, classes), quality=90)
    return {"volume": name, "shape": list(found.volume.grid.shape), **files, "lesions": lines}


def dicom_seg_of(found: PredictedVolume) -> Any:
    """The label map as a DICOM segmentation object on the series that it was found in, by highdicom.

    `ConceptError` for a Concept that draws no masks, `DataError` for a volume that is no DICOM series, for one without
    anything in it, which a segmentation object cannot be, and where highdicom is wanting.
    """
    if found.label_map is None:
        raise ConceptError("the Concept finds boxes and draws no masks, so there is no DICOM segmentation to write")
    if not isinstance(found.volume, SeriesVolume):
        raise DataError("a DICOM segmentation stands on a DICOM series, and the volume is none; leave --dicom-seg out")
    if found.volume.series.first.frame is not None:
        raise DataError(
            "a DICOM segmentation stands on the files of a series, and this has frames; leave --dicom-seg out"
        )
    try:
        import highdicom as hd
    except ModuleNotFoundError:
        raise DataError('--dicom-seg needs highdicom: pip install "cones[medical]"') from None
    from highdicom.sr.coding import CodedConcept
    from pydicom import dcmread
    from pydicom.sr.codedict import codes

    from cones import __version__

    there = [name for name, value in found.values.items() if (found.label_map == value).any()]
    if not there:
        raise DataError("nothing was found in the volume, and a DICOM segmentation of nothing cannot be written")
    numbers = np.zeros(int(found.label_map.max()) + 1, np.uint8)
    for number, name in enumerate(there, 1):
        numbers[found.values[name]] = number
    algorithm = hd.AlgorithmIdentificationSequence(
        name="cones", version=__version__, family=codes.DCM.ArtificialIntelligence
    )
    category = CodedConcept("49755003", "SCT", "Morphologically Abnormal Structure")
    described = [
        hd.seg.SegmentDescription(
            number, name[:64], category, category, hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC, algorithm
        )
        for number, name in enumerate(there, 1)
    ]
    series = [dcmread(header.path, stop_before_pixels=True) for header in found.volume.series.headers]
    for file in series:
        for keyword in (keyword for keyword in MAY_BE_EMPTY if keyword not in file):
            setattr(file, keyword, "")
    return hd.seg.Segmentation(
        source_images=series, pixel_array=numbers[found.label_map].transpose(2, 1, 0),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY, segment_descriptions=described,
        series_instance_uid=hd.UID(), series_number=1, sop_instance_uid=hd.UID(), instance_number=1,
        manufacturer="cones", manufacturer_model_name="cones", software_versions=__version__, device_serial_number="0",
        content_description=RESEARCH.upper()[:64],
    )  # fmt: skip


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
    down, across = found.cut.scale
    x1, y1, x2, y2 = lesion.box
    corners = []
    for row, column in zip(_ends(y1 / down, y2 / down), _ends(x1 / across, x2 / across)):
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
        marked = found.cut.voxels(one.mask(part.index)).sum() if one.regions is not None else None
        voxels += (c - a) * (d - b) / (down * across) if marked is None else float(marked)
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


def _ends(first: float, after: float) -> tuple[float, float]:
    """The first and the last of the pixels between two edges, or the middle of what is less than one."""
    middle = (first + after - 1) / 2
    return min(first, middle), max(after - 1, middle)


def _array_place(found: PredictedVolume, row: float, column: float) -> tuple[float, float]:
    """Where a row and a column of the whole slice lie along the array's two other axes."""
    view = found.cut.view
    height, width = view.size(found.volume.grid)
    y = height - 1 - row if view.flip[0] else row
    x = width - 1 - column if view.flip[1] else column
    return (x, y) if view.swap else (y, x)


def _sheet(found: PredictedVolume, classes: Sequence[str]) -> Image.Image:
    """The slices with the surest lesions, as drawn pictures, in their order; without any, some of all."""
    surest = dict.fromkeys(max(one.parts, key=lambda at: one.parts[at].score) for one in found.lesions)
    places = sorted(list(surest)[:SHOWN]) or np.linspace(0, len(found.detections) - 1, 4).astype(int).tolist()
    pictures = [Image.fromarray(found.cut.picture(found.volume, at)).convert("RGB") for at in places]
    drawn = [drawn_picture(picture, found.detections[at], classes) for picture, at in zip(pictures, places)]
    rows = range(0, len(places), ACROSS)
    told = [(f"slices {', '.join(map(str, places[i : i + ACROSS]))}", drawn[i : i + ACROSS]) for i in rows]
    return picture_rows(told, SIDE)
