"""Which entry of the table `data` reads a folder of a user's own pictures, or a list of them."""

import csv
import io
import os
from itertools import islice
from pathlib import Path

from cones.cli.recognise_coco import ANNOTATIONS, coco_entry, coco_files, is_coco, json_object
from cones.cli.recognise_masks import by_class, has_mask_folders, masks_in, subject_masks
from cones.common.choices import Task, Values
from cones.common.errors import DataError
from cones.common.reading import read_file
from cones.data.folders import class_folders, files_in, is_hidden, pictures_in, split_folders
from cones.data.masknames import masks_beside
from cones.data.settings import ObjectData, PictureData
from cones.readers.coop import CoOpData
from cones.readers.csv import TableData
from cones.readers.folder import FolderData
from cones.readers.labelme import LabelMeData
from cones.readers.subject import FEWEST, SubjectData, refuse_masks_beside
from cones.readers.voc import VocData
from cones.readers.yolo import YoloData, yolo_yaml

KNOWN = (
    "class folders, a CSV with the columns path and label, CoOp's split_zhou_*.json, COCO's JSON, VOC's folders, "
    "YOLO's data.yaml, LabelMe's JSON, pictures with masks or pictures of one subject"
)
BEGINNING = 2**16
"""Bytes of a table that are looked at for the names of its columns."""
FIRST = 5
"""JSON files of a folder that are opened to see whether they are LabelMe's."""


def entry_of(source: Path, task: Task | None, values: Values | None) -> PictureData | SubjectData:
    """The entry that reads a folder or a list; a list says itself what it is.

    `task` chooses among what a folder can be. `DataError` if it cannot be that, or if it can be two things and no task
    is given.
    """
    if not os.path.exists(source):
        raise DataError(f"{source} is no folder and no list of pictures; give a folder with {KNOWN}")
    name = _as_written(source)
    config: PictureData | None
    if not source.is_dir():
        config = _of_list(source)
        objects = isinstance(config, ObjectData)
        if task == "generation" or (task and objects == (task == "classification")):
            raise DataError(
                f"{source} lists {'objects' if objects else 'classes'} of pictures, which is not for {task}"
            )
        return config
    match task:
        case "classification":
            config = _class_list(source, name)
            if config is None and not class_folders(source):
                raise DataError(f"{source} has no class folders and no list of classes, which classification needs")
            return config or FolderData(kind="folder", source=name)
        case "detection" | "segmentation":
            config = _objects(source, name) or masks_in(source, name, values)
            if config is None:
                raise DataError(
                    f"nothing in {source} marks objects, which {task} needs: COCO's JSON, VOC's or YOLO's folders, "
                    "LabelMe's JSON, or masks beside the pictures or in a folder beside theirs"
                )
            return config
        case "generation":
            if len(pictures_in(source, below=False)) < FEWEST:
                raise DataError(f"{source} itself holds no {FEWEST} pictures of one subject, which generation needs")
            refuse_masks_beside(source)
            return SubjectData(kind="subject", source=name, masks=subject_masks(source))
    return _undecided(source, name, values)


def _undecided(source: Path, name: str, values: Values | None) -> PictureData | SubjectData:
    """The entry for the one thing that a folder can be; `DataError` if it can be two."""
    lists, marked = _class_list(source, name), _objects(source, name)
    beside = marked is None and bool(masks_beside(pictures_in(source)))
    if lists is None:
        twofold = (beside or isinstance(marked, LabelMeData)) and _told_apart(source)
        twofold = twofold or (marked is None and by_class(source))
    else:
        twofold = beside or marked is not None or has_mask_folders(source)
    if twofold:
        raise DataError(
            f"{source} can be read in two ways: {'class folders' if lists is None else 'a list'} of whole pictures, "
            "and marks of the objects in them; say which with --task classification, detection or segmentation"
        )
    if lists is None and marked is None:
        marked = masks_in(source, name, values, open_task=True)
    found = lists or marked
    if found is not None:
        return found
    classes = class_folders(source)
    if len(pictures_in(source, below=False)) >= FEWEST and len(classes) < 2:
        masks = subject_masks(source)
        if not classes or classes == [masks]:
            return SubjectData(kind="subject", source=name, masks=masks)
    return FolderData(kind="folder", source=name)


def _told_apart(source: Path) -> bool:
    """Whether two class folders or more hold pictures."""
    names = class_folders(source)
    roots = split_folders(source).values()
    return sum(any(pictures_in(root / name, below=False) for root in roots) for name in names) > 1


def _of_list(source: Path) -> PictureData:
    """The entry that reads a list of pictures."""
    folder = source.parent
    if folder.name == ANNOTATIONS:
        folder = folder.parent  # the pictures are beside it
    name, listed = _as_written(folder), source.relative_to(folder).as_posix()
    match source.suffix.lower():
        case ".csv":
            return TableData(kind="csv", source=name, table=listed)
        case ".yaml" | ".yml":
            return YoloData(kind="yolo", source=name, table=listed)
        case ".json" if is_coco(source):
            return coco_entry(folder, [source], name)
        case ".json" if _is_labelme(source):
            raise DataError(f"{source} is LabelMe's JSON of one picture; give the folder of all of them")
        case ".json":
            return CoOpData(kind="coop", source=name, split=listed)
    raise DataError(f"{source} is no folder and no list of pictures; give a folder with {KNOWN}")


def _class_list(source: Path, name: str) -> PictureData | None:
    """The entry that reads a list of the pictures' classes in a folder."""
    if any(p.name.startswith("split_zhou_") for p in files_in(source, ".json")):
        return CoOpData(kind="coop", source=name)
    tables = [p for p in files_in(source, ".csv") if _is_table(p)]
    if len(tables) > 1:
        raise DataError(f"{source} has several tables ({', '.join(p.name for p in tables)}); give the one to use")
    return TableData(kind="csv", source=name, table=tables[0].name) if tables else None


def _objects(source: Path, name: str) -> ObjectData | None:
    """The entry that reads a list of the objects in the pictures of a folder; the first of what there is."""
    yamls = [p for suffix in (".yaml", ".yml") for p in files_in(source, suffix) if _is_yolo(p)]
    if len(yamls) == 1 or source / "data.yaml" in yamls:
        return YoloData(kind="yolo", source=name, table="data.yaml" if source / "data.yaml" in yamls else yamls[0].name)
    if (source / "Annotations").is_dir() and (source / "JPEGImages").is_dir():
        return VocData(kind="voc", source=name)
    annotations = coco_files(source)
    if annotations:
        return coco_entry(source, annotations, name)
    shapes = (p for p in files_in(source, ".json", below=True) if not is_hidden(p.relative_to(source)))
    if any(_is_labelme(p) for p in islice(shapes, FIRST)):
        return LabelMeData(kind="labelme", source=name)
    return None


def _as_written(folder: Path) -> str:
    """A folder as params.yaml should name it: from the project where it lies in it, else in full."""
    full = folder.resolve()
    return full.relative_to(Path.cwd()).as_posix() if full.is_relative_to(Path.cwd()) else str(full)


def _is_table(path: Path) -> bool:
    begin = io.StringIO(read_file(path, first=BEGINNING).decode("utf-8-sig", "replace"), newline="")
    try:
        return {"path", "label"} <= {c.strip() for c in next(csv.reader(begin), [])}
    except csv.Error:
        return False


def _is_yolo(path: Path) -> bool:
    read_file(path, first=1)  # what cannot be read may be one
    try:
        content = yolo_yaml(path)
    except DataError:
        return False
    return isinstance(content, dict) and {"names", "train"} <= set(content)


def _is_labelme(path: Path) -> bool:
    return {"shapes", "imagePath"} <= set(json_object(path))
