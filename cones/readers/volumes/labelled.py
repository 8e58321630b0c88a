"""The label maps of a volume, whatever marks it: files, DICOM segmentation objects, contours."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from cones.common.errors import DataError
from cones.common.reading import read_text
from cones.readers.volumes.contours import contour_map
from cones.readers.volumes.headers import Header, Shown
from cones.readers.volumes.lesions import LARGEST
from cones.readers.volumes.rtstruct import roi_maps
from cones.readers.volumes.scans import ContourFile, Scan
from cones.readers.volumes.seg import label_map
from cones.readers.volumes.series import Series
from cones.readers.volumes.settings import VolumeData
from cones.readers.volumes.volume import Volume, open_file, stem


@dataclass(frozen=True)
class LabelMap:
    """The label map of a volume or of a part of it, the class (an index) of each value, what errors call it, and where
    it begins in the volume."""

    array: Shaped[np.ndarray, "a b c"]
    classes: Mapping[int, int]
    name: str
    corner: tuple[int, int, int] = (0, 0, 0)
    named_by: str = "`labels`"
    """What tells the classes of the values, as errors call it."""


def label_maps(
    config: VolumeData, scan: Scan, volume: Volume, labels: Mapping[int, str], shown: Shown
) -> Iterator[LabelMap]:
    """The label maps of a volume; `labels` is what each value stands for. `DataError` for one that does not fit it."""
    of_value = {value: index for index, value in enumerate(sorted(labels))}
    contours = [label for label in scan.labels if isinstance(label, ContourFile)]
    if contours:
        array = contour_map(contours, volume.grid, set(labels), shown)
        yield LabelMap(array, _classes(config, of_value), shown(contours[0].path))
    by_name = {name: value for value, name in labels.items()}
    for label in scan.labels:
        if isinstance(label, Path):
            file = open_file(label, shown)
            if why := volume.grid.difference(file.grid):
                raise DataError(
                    f"the label {shown(label)} {why}; resample it to its image's grid, by nearest neighbour"
                )
            if config.instances == "json":
                path = label.with_name(f"{stem(label)}.json")
                classes = _told(path, label, len(labels), shown)
                yield LabelMap(file.array, classes, shown(label), named_by=shown(path))
            else:
                yield LabelMap(file.array, _classes(config, of_value), shown(label))
        elif isinstance(label, Header):
            assert isinstance(scan.image, Series), "DICOM labels are of DICOM"
            if config.instances == "json":
                raise DataError(f"{shown(label.path)} has no file of classes beside it; set `instances: components`")
            if label.modality == "RTSTRUCT":
                for array, corner in roi_maps(label, scan.image, by_name, shown):
                    yield LabelMap(array, _classes(config, of_value), shown(label.path), corner)
            else:
                array, corner = label_map(label, scan.image, shown, None if config.labels else by_name)
                yield LabelMap(array, _classes(config, of_value), shown(label.path), corner)


def _classes(config: VolumeData, of_value: Mapping[int, int]) -> Mapping[int, int]:
    """The class of each value: of all that there can be where each is a lesion."""
    return dict.fromkeys(range(1, LARGEST), 0) if config.instances == "values" else of_value


def _told(path: Path, label: Path, classes: int, shown: Shown) -> Mapping[int, int]:
    """What the file beside a label says of its values."""
    missing = f"the label {shown(label)} has no {shown(path)} beside it, which `instances: json` needs; add it"
    try:
        told = json.loads(read_text(path, missing))["instances"]
        found = {int(value): index for value, index in told.items()}
        if not all(type(index) is int for index in found.values()):
            raise TypeError
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DataError(
            f'{shown(path)} must hold {{"instances": {{"1": 0}}}}, a class for each value of {shown(label)}; correct it'
        ) from None
    strange = sorted({index for index in found.values() if not 0 <= index < classes})
    if strange:
        raise DataError(
            f"{shown(path)} has the class {strange[0]}, and there are {classes}, counted from 0; correct it, or add "
            "the class to `labels`"
        )
    return found
