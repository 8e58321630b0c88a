"""A data set of volumes as splits of pictures: whole patients divided, slices chosen, lesions marked in them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cones.common.errors import DataError
from cones.common.files import write_json
from cones.common.process import cores
from cones.data.identity import Pseudonyms
from cones.data.objects import Findings
from cones.data.prepared import SPLITS, VOLUMES, Record
from cones.readers.volumes.layouts import find_scans
from cones.readers.volumes.marked import MarkedVolume, divide_volumes, groups_of, mark_volume, shown_by
from cones.readers.volumes.scans import Scan
from cones.readers.volumes.settings import VolumeData
from cones.readers.volumes.shown import SmallLesions
from cones.readers.volumes.writer import Writer

if TYPE_CHECKING:
    from cones.data.settings import Written

READ = {"window", "channels", "slices", "crop", "patch", "volume_index", "frame", "phase"}
"""Settings by which a new volume is cut as those that were searched on."""
MOST_TOLD = 10


def write_volumes(config: VolumeData, folder: Path, names: Pseudonyms) -> "Written":
    """Cut the volumes of a data set into pictures; see `DataSettings.write`.

    The report also has the `volumes` of each split, how many were `unlabelled`, the lesions that were `too_small` in a
    slice, the slices that are `unannotated`, and the `other_rois` that `labels` does not name. `names` makes the
    pseudonyms that all of it has. Raises `DataError` for what cannot be used, by its pseudonym.
    """
    shown = shown_by(names)
    found = find_scans(config, shown)
    labels = config.labels or found.labels
    if not labels:
        raise DataError(f"{config.source} does not say what its label values stand for; set `labels`: {{1: lesion}}")
    classes = tuple(labels[value] for value in sorted(labels))
    refused, volumes = found.refused, list[MarkedVolume]()
    for scan in found.scans:
        try:
            volumes.append(mark_volume(config, scan, labels, names))
        except DataError as error:
            refused.append(str(error))
    if refused and config.unreadable == "refuse":
        listed = "\n".join(f"  - {line}" for line in refused[:MOST_TOLD])
        raise DataError(
            f"{len(refused)} files or volumes of {config.source} cannot be used:\n{listed}\nrepair or remove them, or "
            "set `unreadable: skip` to leave them out and have them listed in the report"
        )
    groups = groups_of(config, volumes)
    splits = divide_volumes(config, volumes, groups, classes, names)
    small, records, counts, unannotated = SmallLesions(), dict[str, list[Record]](), dict[str, int](), list[str]()
    numbers = {m.name: i for i, m in enumerate(sorted(volumes, key=lambda m: m.scan.name))}
    scans = [marked.scan for marked in volumes]
    volumes.clear()  # each of which may be large, and goes once it is written
    for split in SPLITS:
        (folder / split / "pictures").mkdir(parents=True)
        with ThreadPoolExecutor(len(cores())) as pool:
            writer = Writer(config, folder / split, split, small, pool)
            while splits[split]:
                marked = splits[split].pop(0)
                group = names.of(groups[marked.name])
                try:
                    writer.add(marked, group, numbers[marked.name])
                except DataError as error:
                    if config.unreadable == "refuse":
                        raise
                    refused.append(str(error))
        records[split], counts[split] = writer.finish(), len(writer.volumes)
        unannotated += writer.unannotated
        write_json(folder / split / VOLUMES, writer.volumes)
    _refuse_missing(records, classes, config)
    report = {
        "volumes": counts,
        "unlabelled": found.unlabelled,
        "unreadable": refused,
        "too_small": small.lines,
        "unannotated": unannotated,
        "other_rois": found.other_rois,
        "reading": reading_of(config, labels, scans),
        "divided": [s for s in ("val", "test") if not any(scan.split == s for scan in scans)],
    }
    if config.patch is None:
        report["objects"] = Findings().report(records, classes)
    return classes, records, report


def reading_of(config: VolumeData, labels: Mapping[int, str], scans: Sequence[Scan]) -> dict[str, Any]:
    """How new volumes are cut like those of a data set, the value that each class has in a label map, and the modality
    of most of them."""
    settings = config.model_dump(mode="json", include=READ, exclude_defaults=True)
    settings["modality"] = Counter(scan.modality for scan in scans).most_common(1)[0][0]
    return settings | {"labels": {str(value): name for value, name in labels.items()}}


def _refuse_missing(records: Mapping[str, Sequence[Record]], classes: Sequence[str], config: VolumeData) -> None:
    for split, of in records.items():
        counts = Counter(label for record in of for label in record.labels)
        for label, name in enumerate(classes):
            if not counts[label]:
                raise DataError(
                    f"the class `{name}` is not seen in {split} of {config.source}; add patients who have it, make "
                    "`least` smaller, set another `seed`, or take the class out of `labels`"
                )
