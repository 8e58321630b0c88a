"""How a folder of medical volumes is to be read: DICOM, also with contours as text, NIfTI in the layout of a decathlon
or of nnU-Net, BIDS."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cones.cli.recognise import Found
from cones.common.choices import Task
from cones.common.errors import DataError
from cones.common.reading import read_file
from cones.data.folders import entries, holds_dicom

if TYPE_CHECKING:
    from cones.readers.volumes.marked import MarkedVolume
    from cones.readers.volumes.settings import VolumeData

STRIDE = 5.0
"""Millimetres between the slices of CT, in which neighbours hardly differ."""
SIGNS = ("imagesTr", "dataset_description.json")


def is_volumes(source: Path) -> bool:
    """Whether a folder holds medical volumes."""
    if not source.is_dir():
        return False
    if any((source / sign).exists() for sign in SIGNS) or _is_decathlon(source / "dataset.json"):
        return True
    return holds_dicom(source) or _has_contours(source)


def _has_contours(source: Path) -> bool:
    """Whether a folder holds contours of images as text."""
    from cones.readers.volumes.contour_files import is_contour

    return any(map(is_contour, entries(source)))


def _is_decathlon(path: Path) -> bool:
    return path.is_file() and b'"training"' in read_file(path)


def look_at_volumes(source: Path, task: Task | None = None) -> Found:
    """What volumes a folder holds, and the entry of `data` that reads them; labels are opened, images are not.

    `DataError` for volumes without labels, and for a task that is not for boxes and masks.
    """
    from cones.data.identity import Pseudonyms
    from cones.readers.volumes.layouts import find_scans
    from cones.readers.volumes.marked import mark_volume, shown_by
    from cones.readers.volumes.settings import VolumeData

    if task in ("classification", "generation"):
        raise DataError(
            f"{source} holds volumes with marked lesions, for detection or segmentation; for {task} set `patch: 40`, "
            "the millimetres around each lesion, in params.yaml"
        )
    names = Pseudonyms(b"nothing of it is kept")
    config = VolumeData(kind="volumes", source=str(source))
    found = find_scans(config, shown_by(names))
    labels = found.labels
    if not labels or not found.scans:
        raise DataError(
            f"{source} has {len(found.scans)} volumes with labels, and says of {len(labels)} classes what their values "
            f"are; give labels (SEG, masks), and `labels: {{1: lesion}}` in params.yaml{_first(found.refused)}"
        )
    volumes = [mark_volume(config, scan, labels, names) for scan in found.scans]
    of_class = Counter(label for one in volumes for label in {lesion.label for lesion in one.lesions})
    classes = [labels[value] for value in sorted(labels)]
    modality = Counter(scan.modality for scan in found.scans).most_common(1)[0][0]
    entry: dict[str, Any] = {"kind": "volumes", "source": str(source)}
    entry |= {"window": "soft", "slices": {"stride": STRIDE}} if modality == "CT" else {"window": "percentile"}
    if any(scan.annotated is not None for scan in found.scans):
        entry["slices"] = {"axis": "acquired"}  # across the heart's axis
    fewest = min(_surely_trained(config, volumes, i, entry) for i in range(len(classes)))
    counts = {name: of_class[i] for i, name in enumerate(classes)}
    splits = any(scan.split for scan in found.scans)
    divided = ("val",) if splits else ()
    return Found(
        {**entry, "crop": "body"}, classes, counts, len(found.scans), splits, fewest, True, True, task=task,
        divided=divided, thing="volume",
    )  # fmt: skip


def _surely_trained(
    config: "VolumeData", volumes: "Sequence[MarkedVolume]", label: int, entry: Mapping[str, Any]
) -> int:
    """How many slices of the training volumes show a class at least, whichever patients these are of."""
    from cones.readers.volumes.geometry import View
    from cones.readers.volumes.marked import groups_of
    from cones.readers.volumes.shown import slices_with

    groups = groups_of(config, volumes)
    slices = config.slices.model_validate(entry.get("slices", {}))
    counts: Counter[str] = Counter()
    for one in volumes:
        view, of_class = View.of(one.volume.grid, slices.axis), [x for x in one.lesions if x.label == label]
        there = set(view.strided(one.volume.grid, slices.stride))
        shown = there & slices_with(of_class, view, one.volume.grid, config.least)
        counts[groups[one.name] or one.name] += len(shown)
    held_back = round(len(counts) * (config.val_fraction + config.test_fraction)) + 2
    return sum(sorted(counts.values())[: max(len(counts) - held_back, 0)])


def _first(refused: list[str]) -> str:
    return f"; {refused[0]}" if refused else ""
