"""What lies in a folder of a user's own pictures: how it is to be read, and what classes and objects it has."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cones.cli.recognise_layouts import KNOWN, entry_of
from cones.common.choices import Task, Values
from cones.common.errors import DataError
from cones.common.escaping import printable
from cones.data.copying import list_pictures
from cones.data.folders import pictures_in
from cones.data.settings import ObjectData, PictureData
from cones.readers.folder import FolderData
from cones.readers.masks.settings import MaskData
from cones.readers.subject import FEWEST, SubjectData

ENOUGH = 5
"""Pictures of a class that can be divided into training, validation and test."""


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
    thing: str = "picture"
    """What `pictures` counts; of volumes, `counts` are those that show each class."""


def look_at(source: Path, task: Task | None = None, values: Values | None = None) -> Found:
    """Find out how a folder, or a table of pictures, is to be read; nothing is opened but lists and masks.

    A CSV file with the columns path and label, CoOp's `split_zhou_*.json` or the folder of one, class folders, COCO's
    JSON (one, or one a split), Pascal VOC's folders, YOLO's YAML, LabelMe's JSON, masks and a plain folder of pictures
    of one subject are known. `task` chooses among what a folder may be; `values` says what values of masks stand for.
    Raises `DataError` for anything else, for what may be two things where no task is given, and for what is listed and
    does not exist.
    """
    config = entry_of(source, task, values)
    if values and not isinstance(config, MaskData):
        raise DataError(f"--values {values} is for pictures with masks, and {source} is none of these; leave it out")
    if isinstance(config, SubjectData):
        count, name = len(pictures_in(source, below=False)), source.resolve().name
        entry = config.model_dump(include={"kind", "source", "masks"}, exclude_none=True)
        return Found(entry, [name], {name: count}, count, False, count, one_subject=True, task=task)
    listing = list_pictures(config)
    pictures, classes = listing.pictures, listing.classes
    missing = [p.path for p in pictures if not os.path.isfile(p.path)]
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(pictures)} pictures that {source} lists do not exist as files, such as "
            f"{printable(str(missing[0]))}; "
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
        here = len(pictures_in(source, below=False)) if task is None and isinstance(config, FolderData) else 0
        subject = f"; --task generation makes new pictures of the {here} that lie in it" * (here >= FEWEST)
        raise DataError(
            f"{source} has {len(classes)} classes, the smallest with {fewest} pictures to train on; it takes {KNOWN}, "
            f"with {'one class' if has_objects else 'two classes'} or more and {ENOUGH} pictures of each{subject}"
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
