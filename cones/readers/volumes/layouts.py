"""How volumes and their labels are laid out on disk: DICOM, also with contours as text, a decathlon's dataset.json,
nnU-Net's folders, BIDS."""

from collections import defaultdict
from pathlib import Path

from cones.common.errors import DataError
from cones.data.folders import entries
from cones.readers.volumes.contour_files import contour_scans, is_contour
from cones.readers.volumes.dicom import refuse_two_people, series_of
from cones.readers.volumes.enhanced import slices_of
from cones.readers.volumes.headers import Header, Shown, read_header, read_headers
from cones.readers.volumes.nifti import bids_scans, dataset, decathlon_scans, nnunet_scans
from cones.readers.volumes.rtstruct import roi_names
from cones.readers.volumes.scans import Scan, Scans
from cones.readers.volumes.seg import segment_names
from cones.readers.volumes.series import sorted_series
from cones.readers.volumes.settings import VolumeData

SIGNS = {"decathlon": "dataset.json", "nnunet": "imagesTr", "bids": "dataset_description.json"}
"""What a layout is known by, in this order; contours by a file of theirs, and DICOM too."""


def find_scans(config: VolumeData, shown: Shown) -> Scans:
    """The volumes that have labels, by the layout of `source`. `DataError` for a layout that nothing tells, and for
    an image or a label that its layout names and that is not there."""
    source = Path(config.source)
    files = [path for path in entries(source) if path.is_file() and not path.name.startswith(".")]
    layout = _layout(config, source, files, shown)
    readers = {
        "dicom": _dicom,
        "contours": contour_scans,
        "decathlon": decathlon_scans,
        "nnunet": nnunet_scans,
        "bids": bids_scans,
    }
    return readers[layout](config, files, shown)


def _layout(config: VolumeData, source: Path, files: list[Path], shown: Shown) -> str:
    if config.layout != "auto":
        return config.layout
    for layout, sign in SIGNS.items():
        if (source / sign).exists() and (layout != "decathlon" or "training" in dataset(source)):
            return layout
    if any(map(is_contour, files)):
        return "contours"
    for path in files:
        try:
            if read_header(path, shown):
                return "dicom"
        except DataError:
            return "dicom"  # which is told when all are read
    raise DataError(
        f"{config.source} holds no DICOM, no dataset.json with `training`, no imagesTr and no BIDS; give the folder "
        "that does as `source`, or set `layout: pictures` for pictures with masks or boxes"
    )


def _dicom(config: VolumeData, files: list[Path], shown: Shown) -> Scans:
    headers = read_headers(files, shown)
    if not headers.pictures:
        raise DataError(
            f"none of the {len(files)} files of {config.source} is a DICOM picture that can be read: "
            f"{'; '.join(headers.unreadable[:3]) or 'they are of other kinds'}"
        )
    if config.group_by == "patient":
        refuse_two_people(headers.pictures, shown)
    found = Scans(refused=headers.unreadable)
    of_series: dict[str, list[Header]] = defaultdict(list)
    for header in headers.labels:
        of_series[header.of_series].append(header)
    names: dict[str, None] = {}
    for files_of in series_of(slices_of(headers.pictures, shown), shown):
        uid = str(files_of[0].get("SeriesInstanceUID", "")) or str(files_of[0].path.parent)
        labels = of_series.pop(uid, [])
        if not labels:
            found.unlabelled += 1
            continue
        try:
            series = sorted_series(files_of, shown, config.phase)
            for header in labels:
                names |= dict.fromkeys(_named(header, config, found, shown))
        except DataError as error:
            found.refused.append(str(error))
            continue
        found.scans.append(Scan(uid, files_of[0].patient, series, tuple(labels), modality=files_of[0].modality))
    for headers_of in of_series.values():
        found.refused += [f"{shown(h.path)} is of a series that is not in `source`; add it" for h in headers_of]
    found.labels = dict(enumerate(sorted(names), 1))
    return found


def _named(header: Header, config: VolumeData, found: Scans, shown: Shown) -> list[str]:
    """What a label's segments or ROIs are called. Of ROIs, which plans have for many things, `labels` may name some."""
    if header.modality != "RTSTRUCT":
        return list(segment_names(header, shown).values())
    names = roi_names(header, shown)
    if config.labels:
        of_class = set(config.labels.values())
        found.other_rois += [f"{shown(header.path)} ROI {n}" for n, name in names.items() if name not in of_class]
    return list(names.values())
