"""The only door to data: prepare what a table entry names, and open what was prepared."""

from pathlib import Path

from cones.config import CoOpData, FolderData, TableData, WorldData
from cones.data.files import copy_pictures, list_folder
from cones.data.listing import Listing, gather
from cones.data.pictures import SUFFIXES, open_picture, random_view
from cones.data.prepared import SPLITS, Record, Split, records_hash, write_split
from cones.data.splits import draw_shots, refuse_overlap
from cones.data.tables import list_coop, list_table
from cones.files import fresh_folder, write_json

__all__ = [
    "SUFFIXES",
    "Record",
    "Split",
    "draw_shots",
    "list_pictures",
    "open_picture",
    "prepare",
    "random_view",
    "records_hash",
]


def prepare(config: WorldData | FolderData | TableData | CoOpData, target: Path) -> dict:
    """Write the splits of a data set to `target`, whole or not at all; returns its report, kept there too."""
    with fresh_folder(target) as folder:
        if isinstance(config, WorldData):
            classes, splits, report = _generate(config, folder)
        else:
            listing = list_pictures(config)
            classes = tuple(listing.classes)
            found, report = gather(listing, config)
            splits = {s: copy_pictures(found[s], folder / s) for s in SPLITS}
        refuse_overlap(splits)
        for name, records in splits.items():
            write_split(folder / name, classes, records, report.get("templates", []))
        report |= {
            "classes": list(classes),
            "pictures": {name: len(records) for name, records in splits.items()},
            "hashes": {name: records_hash(records) for name, records in splits.items()},
        }
        write_json(folder / "report.json", report)
    return report


def list_pictures(config: FolderData | TableData | CoOpData) -> Listing:
    """The classes and pictures that a data set names; no picture is opened. `DataError` if they cannot be listed."""
    match config:
        case FolderData():
            return list_folder(config)
        case TableData():
            return list_table(config)
        case CoOpData():
            return list_coop(config)


def _generate(config: WorldData, folder: Path) -> tuple[tuple[str, ...], dict[str, list[Record]], dict]:
    """Draw the world's pictures of each class into one array a split."""
    import hashlib

    import numpy as np

    from cones.data import synthetic

    classes = synthetic.classes(config.vocabulary)
    splits: dict[str, list[Record]] = {}
    for name, per_class in zip(SPLITS, (config.train, config.val, config.test)):
        (folder / name).mkdir()
        count = per_class * len(classes)
        shape = (count, config.size, config.size, 3)
        images = np.lib.format.open_memmap(folder / name / "images.npy", "w+", np.uint8, shape)
        records = []
        for i in range(count):
            label = i % len(classes)
            images[i] = synthetic.picture(config.seed, name, i, config.size, classes[label]).image
            digest = hashlib.sha256(images[i].tobytes()).hexdigest()
            records.append(Record(f"{name}-{i:05d}", label, digest))
        images.flush()
        splits[name] = records
    return classes, splits, {}
