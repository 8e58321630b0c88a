"""The label maps of a volume, whatever marks it: files, DICOM segmentation objects, contours."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from cones.common.errors import DataError
from cones.readers.volumes.contours import contour_map
from cones.readers.volumes.dicom import Header, Shown
from cones.readers.volumes.rtstruct import roi_maps
from cones.readers.volumes.scans import ContourFile, Scan
from cones.readers.volumes.seg import label_map
from cones.readers.volumes.series import Series
from cones.readers.volumes.settings import VolumeData
from cones.readers.volumes.volume import Volume, open_file

WHOLE = (0, 0, 0)


def label_maps(
    config: VolumeData, scan: Scan, volume: Volume, labels: Mapping[int, str], shown: Shown
) -> Iterator[tuple[Shaped[np.ndarray, "a b c"], tuple[int, int, int], str]]:
    """Label maps of a volume, or of a part of it, where they begin in it (i, j, k) and what errors call them; `labels`
    is what each value stands for.

    `DataError` for one that does not fit the volume.
    """
    contours = [label for label in scan.labels if isinstance(label, ContourFile)]
    if contours:
        yield contour_map(contours, volume.grid, set(labels), shown), WHOLE, shown(contours[0].path)
    by_name = {name: value for value, name in labels.items()}
    for label in scan.labels:
        if isinstance(label, Path):
            file = open_file(label, shown)
            if why := volume.grid.difference(file.grid):
                raise DataError(
                    f"the label {shown(label)} {why}; resample it to its image's grid, by nearest neighbour"
                )
            yield file.array, WHOLE, shown(label)
        elif isinstance(label, Header):
            assert isinstance(scan.image, Series), "DICOM labels are of DICOM"
            if label.modality == "RTSTRUCT":
                for array in roi_maps(label, scan.image, by_name, shown):
                    yield array, WHOLE, shown(label.path)
            else:
                array, corner = label_map(label, scan.image, shown, None if config.labels else by_name)
                yield array, corner, shown(label.path)
