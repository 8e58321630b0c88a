"""Prepare what an entry of `data` names: list its pictures, divide, copy, write."""

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from cones.common.errors import DataError
from cones.common.files import fresh_folder, write_json
from cones.config.tables import DataConfig
from cones.data.changes import unchanged
from cones.data.folders import pictures_in, split_folders
from cones.data.listing import Listing, gather, refuse_class_names
from cones.data.prepared import SPLITS, Record, records_hash, write_split
from cones.data.settings import PictureData
from cones.data.splits import refuse_overlap
from cones.readers.coco import CocoData, list_coco
from cones.readers.coop import CoOpData, list_coop
from cones.readers.csv import TableData, list_table
from cones.readers.folder import LONGEST_SUFFIX, FolderData, list_folder
from cones.readers.labelme import LabelMeData, list_labelme
from cones.readers.masknames import masks_below, masks_beside, pictures_and_masks
from cones.readers.masks import MaskData, list_masks
from cones.readers.subject import SubjectData, copy_subject
from cones.readers.voc import VocData, list_voc
from cones.readers.world import (
    SceneData,
    SubjectWorldData,
    WorldData,
    generate_pictures,
    generate_scenes,
    generate_subject,
)
from cones.readers.yolo import YoloData, list_yolo

LISTS: dict[type[PictureData], Callable[[Any], Listing]] = {
    FolderData: list_folder,
    TableData: list_table,
    CoOpData: list_coop,
    CocoData: list_coco,
    VocData: list_voc,
    YoloData: list_yolo,
    LabelMeData: list_labelme,
    MaskData: list_masks,
}


def prepare(config: DataConfig, target: Path) -> dict:
    """Write the splits of a data set to `target`, whole or not at all; returns its report, kept there too.

    The report holds `classes`, `pictures` and `hashes` by split, the splits that were `divided` off training, lists of
    what was left out, and, for detection, `objects` (`Findings.report`). Raises `DataError` for data that cannot be
    used, and `Changed` for pictures of one's own that changed meanwhile.
    """
    own = isinstance(config, PictureData | SubjectData)
    with fresh_folder(target) as folder, unchanged(Path(config.source)) if own else nullcontext():
        if isinstance(config, WorldData):
            classes, splits, report = generate_pictures(config, folder)
        elif isinstance(config, SceneData):
            classes, splits, report = generate_scenes(config, folder)
        elif isinstance(config, SubjectWorldData):
            classes, splits, report = generate_subject(config, folder)
        elif isinstance(config, SubjectData):
            refuse_masks_beside(Path(config.source))
            classes, splits, report = copy_subject(config, folder)
        else:
            listing = list_pictures(config)
            classes = tuple(listing.classes)
            found, report = gather(listing, config)
            splits = {s: copy_pictures(found[s], folder / s) for s in SPLITS}
        refuse_overlap({s: records for s, records in splits.items() if s not in report.get("shared", ())})
        for name, records in splits.items():
            write_split(folder / name, classes, records, report.get("templates", []))
        report |= {
            "classes": list(classes),
            "pictures": {name: len(records) for name, records in splits.items()},
            "hashes": {name: records_hash(records) for name, records in splits.items()},
        }
        write_json(folder / "report.json", report)
    return report


def list_pictures(config: PictureData) -> Listing:
    """The classes and pictures that a data set names; no picture is opened, but masks are.

    In class folders masks, x_mask.png beside x.png or in folders beside or below those of the pictures, are no pictures
    of the class and are reported as `masks`. `DataError` if they cannot be listed.
    """
    listing = LISTS[type(config)](config)
    refuse_class_names(listing.classes, config.source)
    if isinstance(config, FolderData):
        roots = [root / name for root in split_folders(Path(config.source)).values() for name in listing.classes]
        folders = {folder for root in roots for folder in pictures_and_masks(root)[1]}
        masks = {p for p in (p.path for p in listing.pictures) if folders & set(p.parents)}
        masks |= set(masks_beside([p.path for p in listing.pictures]))
        masks |= {mask for root in roots for mask in masks_below(root)}
        left = [p for p in listing.pictures if p.path not in masks]
        report = {**listing.report, "masks": [p.id for p in listing.pictures if p.path in masks]}
        listing = replace(listing, pictures=left, report=report)
    return listing


def refuse_masks_beside(source: Path) -> None:
    """Raise `DataError` for a folder of one subject whose pictures have masks beside them."""
    masks = masks_beside(pictures_in(source, below=False))
    if masks:
        raise DataError(
            f"{source} holds masks among its pictures, such as {next(iter(masks)).name}; move them to a folder in "
            "it, each called as its picture, and name that with `masks`"
        )


def copy_pictures(pictures: list[tuple[Record, Path]], folder: Path) -> list[Record]:
    """Copy pictures into a split's folder under the hash of their content; the records then name the copies."""
    target = folder / "pictures"
    target.mkdir(parents=True)
    records = []
    for record, path in pictures:
        suffix = path.suffix.lower()
        plain = len(suffix) <= LONGEST_SUFFIX and suffix[1:].isascii() and suffix[1:].isalnum()
        name = f"pictures/{record.sha256[:16]}{suffix if plain else ''}"
        shutil.copyfile(path, folder / name)
        records.append(replace(record, file=name))
    return records
