"""What lies in a folder of a user's own pictures: how it is to be read, and what classes and objects it has."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from cones.config import (
    CocoData,
    CoOpData,
    FolderData,
    LabelMeData,
    MaskData,
    ObjectData,
    PictureData,
    SubjectData,
    TableData,
    VocData,
    YoloData,
)
from cones.data import (
    FEWEST,
    SUFFIXES,
    class_folders,
    list_pictures,
    masks_beside,
    pictures_in,
    refuse_masks_beside,
    split_folders,
)
from cones.errors import DataError
from cones.recognising_masks import Values, masks_in, masks_in_folders

KNOWN = (
    "class folders, a CSV with the columns path and label, CoOp's split_zhou_*.json, COCO's JSON, VOC's folders, "
    "YOLO's data.yaml, LabelMe's JSON, pictures with masks or pictures of one subject"
)
Task = Literal["classification", "detection", "segmentation", "generation"]
SPLIT_WORDS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
ENOUGH = 5
"""Pictures of a class that can be divided into training, validation and test."""
ANNOTATIONS = "annotations"
"""The folder in which COCO's files often are."""
TRIED = 50
"""Pictures of a COCO file that are looked for in each folder."""
FIRST = 5
"""JSON files of a folder that are opened to see whether they are LabelMe's."""


@dataclass(frozen=True)
class Found:
    """What lies in a folder: the entry of the table `data` that reads it, its classes and pictures.

    `counts` are the pictures of each class, in data for detection its objects. `fewest` is the number of training
    pictures that each class has after the division into splits, if none is left out; 0 where only that can tell.
    """

    entry: dict[str, Any]
    classes: list[str]
    counts: dict[str, int]
    pictures: int
    has_splits: bool
    fewest: int
    has_objects: bool = False
    has_masks: bool = False
    one_subject: bool = False
    """A few pictures of one thing, to make new ones of; its class is the folder's name."""
    task: Task | None = None
    """The one that was asked for; None: what the data and the base model can do."""
    divided: tuple[str, ...] = ()
    """The splits that data with others of its own lacks."""


def look_at(source: Path, task: Task | None = None, values: Values | None = None) -> Found:
    """Find out how a folder, or a table of pictures, is to be read; nothing is opened but lists and masks.

    A CSV file with the columns path and label, CoOp's `split_zhou_*.json` or the folder of one, class folders, COCO's
    JSON (one, or one a split), Pascal VOC's folders, YOLO's YAML, LabelMe's JSON, masks and a plain folder of pictures
    of one subject are known. `task` chooses among what a folder may be; `values` says what values of masks stand for.
    Raises `DataError` for anything else, for what may be two things where no task is given, and for what is listed and
    does not exist.
    """
    config = _config(source, task, values)
    if values and not isinstance(config, MaskData):
        raise DataError(f"--values {values} is for pictures with masks, and {source} is none of these; leave it out")
    if isinstance(config, SubjectData):
        count, name = len(_pictures_here(source)), source.resolve().name
        entry = {"kind": "subject", "source": config.source}
        return Found(entry, [name], {name: count}, count, False, count, one_subject=True, task=task)
    listing = list_pictures(config)
    pictures, classes = listing.pictures, listing.classes
    missing = [p.path for p in pictures if not p.path.is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(pictures)} pictures that {source} lists do not exist, such as {missing[0]}; "
            "put them there, or take them off the list"
        )
    marks = [m for p in pictures for m in p.marks or ()]
    has_objects, has_splits = isinstance(config, ObjectData), any(p.split for p in pictures)
    shown = [{m.label for m in p.marks if not m.crowd} if p.marks is not None else {p.label} for p in pictures]
    of_class = Counter(label for labels in shown for label in labels)
    of_training = [labels for p, labels in zip(pictures, shown) if p.split in ("train", "")]
    trained = surely_trained(of_training, config, listing.divided)
    fewest, rarest = (min((of[i] for i in range(len(classes))), default=0) for of in (trained, of_class))
    open_yet = has_objects and listing.divided and rarest >= ENOUGH
    if len(classes) < (1 if has_objects else 2) or (fewest < 1 and not open_yet):
        raise DataError(
            f"{source} has {len(classes)} classes, the smallest with {fewest} pictures to train on; it takes {KNOWN}, "
            f"with {'one class' if has_objects else 'two classes'} or more and {ENOUGH} pictures of each"
        )
    counts = Counter(m.label for m in marks if not m.crowd) if has_objects else of_class
    entry = {k: v for k, v in config.model_dump(exclude_defaults=True).items() if v is not None}
    if isinstance(config, MaskData):
        entry["objects"] = config.objects  # so that one sees that there is a choice
    return Found(
        {"kind": entry.pop("kind"), **entry},
        classes,
        {name: counts[i] for i, name in enumerate(classes)},
        len(pictures),
        has_splits,
        fewest,
        has_objects,
        bool(marks) and all(m.outline is not None for m in marks),
        task=task,
        divided=listing.divided if has_splits else (),
    )


def surely_trained(
    shown: Sequence[set[int]], config: PictureData, divided: Sequence[str] = ("val", "test")
) -> Counter[int]:
    """How many training pictures show each class at least, however pictures of several classes fall.

    `divided` are the splits that are divided off them, in groups by the rarest class that a picture shows; at worst all
    that is held back of a group shows it.
    """
    of_class = Counter(label for labels in shown for label in labels)
    groups: dict[int, list[set[int]]] = {}
    for labels in shown:
        groups.setdefault(min(labels, key=lambda label: (of_class[label], label), default=-1), []).append(labels)
    sure: Counter[int] = Counter()
    for group in groups.values():
        shares = {"val": config.val_fraction, "test": config.test_fraction}
        held = sum(max(1, round(len(group) * shares[split])) for split in divided)
        for label, count in Counter(label for labels in group for label in labels).items():
            sure[label] += max(0, count - held)
    return sure


def _config(source: Path, task: Task | None, values: Values | None) -> PictureData | SubjectData:
    """The entry that reads a folder or a list; a list says itself what it is."""
    if not source.exists():
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
                    "LabelMe's JSON, or masks"
                )
            return config
        case "generation":
            if len(_pictures_here(source)) < FEWEST:
                raise DataError(f"{source} itself holds no {FEWEST} pictures of one subject, which generation needs")
            refuse_masks_beside(source)
            return SubjectData(kind="subject", source=name)
    return _undecided(source, name, values)


def _undecided(source: Path, name: str, values: Values | None) -> PictureData | SubjectData:
    """The entry for the one thing that a folder can be; `DataError` if it can be two."""
    lists, marked = _class_list(source, name), _objects(source, name)
    beside = marked is None and bool(masks_beside(pictures_in(source)))
    if lists is None:
        twofold = (beside or isinstance(marked, LabelMeData)) and _told_apart(source)
    else:
        twofold = beside or marked is not None or masks_in_folders(source) is not None
    if twofold:
        raise DataError(
            f"{source} can be read in two ways: {'class folders' if lists is None else 'a list'} of whole pictures, "
            "and marks of the objects in them; say which with --task classification, detection or segmentation"
        )
    if lists is None and marked is None:
        try:
            marked = masks_in(source, name, values)
        except DataError as error:
            raise DataError(f"{error}; --task classification or generation reads all as plain pictures") from None
    found = lists or marked
    if found is not None:
        return found
    is_subject = not class_folders(source) and len(_pictures_here(source)) >= FEWEST
    return SubjectData(kind="subject", source=name) if is_subject else FolderData(kind="folder", source=name)


def _pictures_here(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != "."]


def _told_apart(source: Path) -> bool:
    """Whether two class folders or more hold pictures."""
    names = class_folders(source)
    return sum(any(_pictures_here(root / n) for root in split_folders(source).values()) for n in names) > 1


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
        case ".json" if _is_coco(source):
            return _coco(folder, [source], name)
        case ".json" if _is_labelme(source):
            raise DataError(f"{source} is LabelMe's JSON of one picture; give the folder of all of them")
        case ".json":
            return CoOpData(kind="coop", source=name, split=listed)
    raise DataError(f"{source} is no folder and no list of pictures; give a folder with {KNOWN}")


def _class_list(source: Path, name: str) -> PictureData | None:
    """The entry that reads a list of the pictures' classes in a folder."""
    if list(source.glob("split_zhou_*.json")):
        return CoOpData(kind="coop", source=name)
    tables = [p for p in sorted(source.glob("*.csv")) if _is_table(p)]
    if len(tables) > 1:
        raise DataError(f"{source} has several tables ({', '.join(p.name for p in tables)}); give the one to use")
    return TableData(kind="csv", source=name, table=tables[0].name) if tables else None


def _objects(source: Path, name: str) -> ObjectData | None:
    """The entry that reads a list of the objects in the pictures of a folder; the first of what there is."""
    yamls = [p for p in sorted([*source.glob("*.yaml"), *source.glob("*.yml")]) if _is_yolo(p)]
    if len(yamls) == 1 or source / "data.yaml" in yamls:
        return YoloData(kind="yolo", source=name, table="data.yaml" if source / "data.yaml" in yamls else yamls[0].name)
    if (source / "Annotations").is_dir() and (source / "JPEGImages").is_dir():
        return VocData(kind="voc", source=name)
    beside = [p for p in source.glob("*/*.json") if p.parent.name == ANNOTATIONS or _split_in(p.parent.name)]
    annotations = [p for p in sorted([*source.glob("*.json"), *beside]) if _is_coco(p)]
    if annotations:
        return _coco(source, annotations, name)
    shapes = (p for p in source.rglob("*.json") if not any(s[0] == "." for s in p.relative_to(source).parts))
    if any(_is_labelme(p) for p in islice(shapes, FIRST)):
        return LabelMeData(kind="labelme", source=name)
    return None


def _as_written(folder: Path) -> str:
    """A folder as params.yaml should name it: from the project where it lies in it, else in full."""
    full = folder.resolve()
    return full.relative_to(Path.cwd()).as_posix() if full.is_relative_to(Path.cwd()) else str(full)


def _is_table(path: Path) -> bool:
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        return {"path", "label"} <= {c.strip() for c in next(csv.reader(file), [])}


def _is_yolo(path: Path) -> bool:
    try:
        content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (OSError, YAMLError, UnicodeDecodeError):
        return False
    return isinstance(content, dict) and {"names", "train"} <= set(content)


def _is_coco(path: Path) -> bool:
    return {"images", "annotations", "categories"} <= set(_json(path))


def _is_labelme(path: Path) -> bool:
    return {"shapes", "imagePath"} <= set(_json(path))


def _json(path: Path) -> dict[str, Any]:
    """The content of a JSON object; of anything else, nothing."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _coco(folder: Path, files: Sequence[Path], name: str) -> CocoData:
    """One COCO file, or one for each split that there is, with the folders that hold their pictures."""
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_of(file.relative_to(folder)) if len(files) > 1 else "", []).append(file)
    there = {split: paths[0] for split, paths in by_split.items()}
    if max(map(len, by_split.values())) > 1 or not (set(there) == {""} or "train" in there):
        listed = ", ".join(p.relative_to(folder).as_posix() for p in files)
        raise DataError(
            f"{folder} has several COCO files ({listed}), and not one for each of train, val and test, nor for train "
            "and one more; give the one that lists all pictures, or write `annotations: {train: ..., val: ..., test: "
            "...}` into params.yaml"
        )
    pictures = {split: _pictures_of(path, folder, split) for split, path in there.items()}
    annotations = {split: path.relative_to(folder).as_posix() for split, path in there.items()}
    if "" in there:
        return CocoData(kind="coco", source=name, annotations=annotations[""], pictures=pictures[""])
    where = pictures["train"] if len(set(pictures.values())) == 1 else pictures
    return CocoData(kind="coco", source=name, annotations=annotations, pictures=where)


def _split_of(path: Path) -> str:
    """The split that a file's name speaks of, or else its folder's."""
    return _split_in(path.stem) or _split_in(path.parent.name)


def _split_in(name: str) -> str:
    """The split that a name speaks of; "" if it speaks of none."""
    words = re.findall("[a-z]+", name.lower())
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), "")


def _pictures_of(file: Path, folder: Path, split: str) -> str:
    """The folder in which most pictures of a COCO file are, by its path from the data set's."""
    entries = _json(file)["images"]
    listed = entries[:TRIED] if isinstance(entries, list) else []
    names = [str(p["file_name"]) for p in listed if isinstance(p, dict) and "file_name" in p]
    tried = sorted(_folders(folder), key=lambda p: (split != _split_in(p.name), p != file.parent))
    best = max(tried, key=lambda p: sum((p / name).is_file() for name in names))
    if names and not any((best / name).is_file() for name in names):
        raise DataError(
            f"{file} lists {names[0]}, which is in no folder of {folder}; put the pictures there, or write `pictures` "
            "into params.yaml"
        )
    found = best.relative_to(folder).as_posix()
    return "" if found == "." else found


def _folders(folder: Path) -> Iterator[Path]:
    """A folder and those up to two levels below it."""
    yield folder
    yield from sorted(p for depth in ("*", "*/*") for p in folder.glob(depth) if p.is_dir() and p.name[0] != ".")
