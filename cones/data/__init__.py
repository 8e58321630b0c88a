"""The only door to data: prepare what a table entry names, and open what was prepared."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from cones.common.errors import DataError
from cones.common.files import fresh_folder, write_json
from cones.data.changes import unchanged
from cones.data.folders import files_in, is_hidden, pictures_in, subfolders
from cones.data.listing import Listing, gather, refuse_class_names
from cones.data.masks import object_mask
from cones.data.pictures import SUFFIXES, open_picture, random_view, rgb
from cones.data.prepared import SPLITS, Object, Record, Split, records_hash, write_split
from cones.data.settings import (
    CocoData,
    CoOpData,
    DataConfig,
    FolderData,
    LabelMeData,
    MaskData,
    PictureData,
    SceneData,
    SubjectData,
    SubjectWorldData,
    TableData,
    VocData,
    WorldData,
    YoloData,
)
from cones.data.splits import SPLIT_NAMES, draw_pictures, draw_shots, refuse_overlap
from cones.readers.coco import list_coco
from cones.readers.csv import list_coop, list_table
from cones.readers.folder import class_folders, copy_pictures, list_folder, split_folders
from cones.readers.labelme import list_labelme
from cones.readers.masknames import ending_of, is_of_masks, mask_folders, masks_below, masks_beside, pictures_and_masks
from cones.readers.masks import Masked, list_masks, open_mask, pair_masks, values_in
from cones.readers.subject import FEWEST, copy_subject
from cones.readers.voc import list_voc
from cones.readers.world import generate_pictures, generate_scenes, generate_subject
from cones.readers.yolo import list_yolo, yolo_yaml

__all__ = [
    "FEWEST",
    "SPLIT_NAMES",
    "SUFFIXES",
    "Masked",
    "Object",
    "Record",
    "Split",
    "class_folders",
    "draw_pictures",
    "draw_shots",
    "ending_of",
    "files_in",
    "is_hidden",
    "is_of_masks",
    "list_pictures",
    "mask_folders",
    "masks_beside",
    "object_mask",
    "open_mask",
    "open_picture",
    "pair_masks",
    "pictures_and_masks",
    "pictures_in",
    "prepare",
    "random_view",
    "records_hash",
    "refuse_masks_beside",
    "rgb",
    "split_folders",
    "subfolders",
    "values_in",
    "yolo_yaml",
]

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
