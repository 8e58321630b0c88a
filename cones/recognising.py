"""What lies in a folder of a user's own pictures: how it is to be read, and what classes and objects it has."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from cones.config import CocoData, CoOpData, FolderData, ObjectData, PictureData, TableData, VocData, YoloData
from cones.data import FEWEST, SUFFIXES, class_folders, list_pictures
from cones.errors import DataError

KNOWN = (
    "class folders, a CSV with the columns path and label, CoOp's split_zhou_*.json, COCO's JSON, VOC's folders, "
    "YOLO's data.yaml or pictures of one subject"
)
SPLIT_WORDS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
ENOUGH = 5
"""Pictures of a class that can be divided into training, validation and test."""
ANNOTATIONS = "annotations"
"""The folder in which COCO's files often are."""
TRIED = 50
"""Pictures of a COCO file that are looked for in each folder."""


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
    divided: tuple[str, ...] = ()
    """The splits that data with others of its own lacks."""


def look_at(source: Path) -> Found:
    """Find out how a folder, or a table of pictures, is to be read; nothing is opened but the list itself.

    A CSV file with the columns path and label, CoOp's `split_zhou_*.json` or the folder of one, class folders, COCO's
    JSON (one, or one a split), Pascal VOC's folders, YOLO's YAML and a plain folder of pictures of one subject are
    known. Raises `DataError` for anything else.
    """
    config = _config(source)
    if isinstance(config, FolderData) and not class_folders(source):
        pictures_here = [p for p in source.iterdir() if p.suffix.lower() in SUFFIXES]
        if len(pictures_here) >= FEWEST:
            entry, count = {"kind": "subject", "source": config.source}, len(pictures_here)
            name = source.resolve().name
            return Found(entry, [name], {name: count}, count, has_splits=False, fewest=count, one_subject=True)
    listing = list_pictures(config)
    pictures, classes = listing.pictures, listing.classes
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
    return Found(
        {"kind": entry.pop("kind"), **entry},
        classes,
        {name: counts[i] for i, name in enumerate(classes)},
        len(pictures),
        has_splits,
        fewest,
        has_objects,
        bool(marks) and all(m.outline is not None for m in marks),
        divided=listing.divided if has_splits else (),
    )


def surely_trained(
    shown: Sequence[set[int]], config: PictureData, divided: Sequence[str] = ("val", "test")
) -> Counter[int]:
    """How many training pictures show each class at least, however pictures of several classes fall.

    Pictures are divided in groups by the rarest class they show; at worst all that is held back of a group shows it.
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


def _config(source: Path) -> PictureData:
    """The entry that reads a folder or a list. A list says itself what it is; in a folder the first of them counts."""
    folder = source if source.is_dir() else source.parent
    if folder.name == ANNOTATIONS and folder != source:
        folder = folder.parent  # the pictures are beside it
    name, listed = _as_written(folder), source.relative_to(folder).as_posix()
    match source.suffix.lower():
        case ".csv":
            return TableData(kind="csv", source=name, table=listed)
        case ".yaml" | ".yml":
            return YoloData(kind="yolo", source=name, table=listed)
        case ".json" if _is_coco(source):
            return _coco(folder, [source], name)
        case ".json":
            return CoOpData(kind="coop", source=name, split=listed)
    if not source.is_dir():
        raise DataError(f"{source} is no folder and no list of pictures; give a folder with {KNOWN}")
    if list(source.glob("split_zhou_*.json")):
        return CoOpData(kind="coop", source=name)
    yamls = [p for p in sorted([*source.glob("*.yaml"), *source.glob("*.yml")]) if _is_yolo(p)]
    if len(yamls) == 1 or source / "data.yaml" in yamls:
        return YoloData(kind="yolo", source=name, table="data.yaml" if source / "data.yaml" in yamls else yamls[0].name)
    if (source / "Annotations").is_dir() and (source / "JPEGImages").is_dir():
        return VocData(kind="voc", source=name)
    beside = [p for p in source.glob("*/*.json") if p.parent.name == ANNOTATIONS or _split_in(p.parent.name)]
    annotations = [p for p in sorted([*source.glob("*.json"), *beside]) if _is_coco(p)]
    if annotations:
        return _coco(source, annotations, name)
    tables = [p for p in sorted(source.glob("*.csv")) if _is_table(p)]
    if len(tables) == 1:
        return TableData(kind="csv", source=name, table=tables[0].name)
    return FolderData(kind="folder", source=name)


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
