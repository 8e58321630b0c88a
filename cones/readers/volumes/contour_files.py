"""DICOM series with contours as text, as Sunnybrook has them: a file for each contour, called after its image."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from cones.common.errors import DataError
from cones.readers.volumes.dicom import refuse_two_people, series_of
from cones.readers.volumes.enhanced import slices_of
from cones.readers.volumes.headers import Header, Shown, read_headers
from cones.readers.volumes.scans import ContourFile, Scan, Scans
from cones.readers.volumes.series import phase_count, sorted_series
from cones.readers.volumes.settings import VolumeData
from cones.readers.volumes.tables import column_of

FILE = re.compile(r"^IM-\d+-(?P<image>\d+)-(?P<kind>[io])contour-manual\.txt$", re.IGNORECASE)
"""What a contour's file is called: `i` for the endocardium, `o` for the epicardium."""
LINKS = "link.csv"
"""Which patient the contours of a folder are of: columns original_id, the folder, and patient_id, that of its DICOM."""
VALUES = {"i": 1, "o": 2}
DEFAULT = {1: "left ventricle"}


def is_contour(path: Path) -> bool:
    return FILE.match(path.name) is not None


def contour_scans(config: VolumeData, files: list[Path], shown: Shown) -> Scans:
    """DICOM series with contours of the left ventricle as Sunnybrook has them. Each phase of the heart with contours is
    a volume of its own, or the one `phase` alone; its slices without a contour are not annotated.

    A contour is in a folder of its patient, by PatientID or by what link.csv says; its image is the DICOM file of that
    patient whose name ends with the same number. `DataError` for a folder of
    contours without a patient, and for other `labels` than 1 (inside the endocardium) and 2 (between both contours).
    """
    labels = config.labels or DEFAULT
    if strange := sorted(labels.keys() - {1, 2}):
        raise DataError(
            f"`labels` has the value {strange[0]}, and contours have 1, what the endocardium (i) holds, and 2, what is "
            "between it and the epicardium (o); take it out"
        )
    headers = read_headers((path for path in files if not is_contour(path)), shown)
    found = Scans(refused=headers.unreadable, labels=dict(labels))
    patients = {header.patient for header in headers.pictures} - {""}
    drawn = _drawn(config, [path for path in files if is_contour(path)], patients, found, shown)
    if config.group_by == "patient":
        refuse_two_people(headers.pictures, shown)
    needed, lost = {1, max(labels)}, {patient: set(of) for patient, of in drawn.items()}
    for files_of in series_of(slices_of(headers.pictures, shown), shown):
        of_patient = drawn.get(files_of[0].patient, {})
        marked = {image: header for header in files_of for image in [_number(header.path)] if image in of_patient}
        if not marked:
            found.unlabelled += 1
            continue
        lost[files_of[0].patient] -= marked.keys()
        try:
            _phases(config, files_of, of_patient, needed, found, shown)
        except DataError as error:
            found.refused.append(str(error))
    for patient, images in lost.items():
        found.refused += [
            f"{shown(path)} is a contour on an image that its patient has not; add it, or take the contour out"
            for image in sorted(images)
            for path in drawn[patient][image].values()
        ]
    if not found.scans and not found.refused:
        raise DataError(
            f"no image of {config.source} has {'both contours, i and o' if 2 in labels else 'a contour'}, which "
            "`labels` asks for; add some"
        )
    return found


def _phases(
    config: VolumeData,
    files: Sequence[Header],
    drawn: dict[int, dict[int, Path]],
    needed: set[int],
    found: Scans,
    shown: Shown,
) -> None:
    """Add the volumes of a series, one for each phase that has contours."""
    numbers = [_number(header.path) for header in files]
    twice = next((n for n in numbers if n in drawn and numbers.count(n) > 1), None)
    if twice is not None:
        raise DataError(
            f"the series of {shown(files[0].path)} has several images of the number {twice}, and one contour for them; "
            "keep the one that is meant"
        )
    count = phase_count(files, shown)
    for phase in range(count) if config.phase is None else [config.phase]:
        series = sorted_series(files, shown, phase)
        of_slice = {at: drawn.get(_number(header.path), {}) for at, header in enumerate(series.headers)}
        annotated = frozenset(at for at, of in of_slice.items() if needed <= of.keys())
        contours = tuple(ContourFile(of_slice[at][v], v, at) for at in sorted(annotated) for v in sorted(needed))
        if not contours:
            found.unlabelled += 1
            continue
        uid = str(files[0].get("SeriesInstanceUID", "")) or str(files[0].path.parent)
        name = f"{uid} phase {phase}" if count > 1 else uid
        found.scans.append(Scan(name, files[0].patient, series, contours, "", files[0].modality, annotated))


def _number(path: Path) -> int:
    """The number at the end of a file's name; -1 for none."""
    digits = re.search(r"(\d+)$", path.stem)
    return int(digits[1]) if digits else -1


def _drawn(
    config: VolumeData, files: Sequence[Path], patients: set[str], found: Scans, shown: Shown
) -> dict[str, dict[int, dict[int, Path]]]:
    """The contours of each patient, by the number of the image and the value."""
    source = Path(config.source)
    links = column_of(source / LINKS, ("original_id",), "patient_id") if (source / LINKS).exists() else {}
    drawn: dict[str, dict[int, dict[int, Path]]] = defaultdict(lambda: defaultdict(dict))
    for path in files:
        called = (links.get(part, part) for part in path.relative_to(source).parts)
        patient, name = next((one for one in called if one in patients), ""), FILE.match(path.name)
        assert name is not None, "they are contours"
        if not patient:
            found.refused.append(
                f"{shown(path)} is a contour in a folder of no patient; call the folder as the PatientID in its DICOM, "
                f"or name both in {LINKS}, with the columns original_id and patient_id"
            )
            continue
        of_image = drawn[patient][int(name["image"])]
        other = of_image.setdefault(VALUES[name["kind"].lower()], path)
        if other != path:
            raise DataError(f"{shown(other)} and {shown(path)} are one contour of one image; keep one")
    return drawn
