"""COCO's JSON in a folder of a user's own pictures: which files there are, for which splits, with which pictures."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cones.common.errors import DataError
from cones.common.escaping import shortened
from cones.common.reading import read_json_text
from cones.data.folders import files_in, subfolders
from cones.data.splits import SPLIT_NAMES
from cones.readers.coco import CocoData

ANNOTATIONS = "annotations"
"""The folder in which COCO's files often are."""
TRIED = 50
"""Pictures of a COCO file that are looked for in each folder."""


def coco_files(folder: Path) -> list[Path]:
    """The COCO files in a folder, in `annotations` and in the folders of its splits."""
    named = [p for p in subfolders(folder) if p.name == ANNOTATIONS or _split_in(p.name)]
    return [p for p in sorted(file for of in (folder, *named) for file in files_in(of, ".json")) if is_coco(p)]


def is_coco(path: Path) -> bool:
    return {"images", "annotations", "categories"} <= set(json_object(path))


def json_object(path: Path) -> dict[str, Any]:
    """The content of a JSON object; of anything else, nothing. `DataError` for a file that cannot be read."""
    try:
        content = json.loads(read_json_text(path))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def coco_entry(folder: Path, files: Sequence[Path], name: str) -> CocoData:
    """One COCO file, or one for each split that there is, with the folders that hold their pictures."""
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_of(file.relative_to(folder)) if len(files) > 1 else "", []).append(file)
    there = {split: paths[0] for split, paths in by_split.items()}
    one_file = set(there) == {""}
    if max(map(len, by_split.values())) > 1 or not (one_file or ("train" in there and "" not in there)):
        listed = ", ".join(p.relative_to(folder).as_posix() for p in files)
        raise DataError(
            f"{folder} has several COCO files ({listed}), and not one for each of train, val and test, nor for train "
            "and one more; give the one that lists all pictures, or write `annotations: {train: ..., val: ..., test: "
            "...}` into params.yaml"
        )
    pictures = {split: _pictures_of(path, folder, split) for split, path in there.items()}
    annotations = {split: path.relative_to(folder).as_posix() for split, path in there.items()}
    if one_file:
        return CocoData(kind="coco", source=name, annotations=annotations[""], pictures=pictures[""])
    where = pictures["train"] if len(set(pictures.values())) == 1 else pictures
    return CocoData(kind="coco", source=name, annotations=annotations, pictures=where)


def _split_of(path: Path) -> str:
    """The split that a file's name speaks of, or else its folder's."""
    return _split_in(path.stem) or _split_in(path.parent.name)


def _split_in(name: str) -> str:
    """The split that a name speaks of; "" if it speaks of none."""
    words = re.findall("[a-z]+", name.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "")


def _pictures_of(file: Path, folder: Path, split: str) -> str:
    """The folder in which most pictures of a COCO file are, by its path from the data set's."""
    entries = json_object(file)["images"]
    listed = entries[:TRIED] if isinstance(entries, list) else []
    names = [str(p["file_name"]) for p in listed if isinstance(p, dict) and "file_name" in p]
    tried = sorted(_folders(folder), key=lambda p: (split != _split_in(p.name), p != file.parent))
    best = max(tried, key=lambda p: sum(os.path.isfile(p / name) for name in names))
    if names and not any(os.path.isfile(best / name) for name in names):
        raise DataError(
            f"{file} lists {shortened(names[0])}, which is in no folder of {folder}; put the pictures there, or write "
            "`pictures` into params.yaml"
        )
    found = best.relative_to(folder).as_posix()
    return "" if found == "." else found


def _folders(folder: Path) -> Iterator[Path]:
    """A folder and those up to two levels below it."""
    yield folder
    first = subfolders(folder)
    yield from sorted([*first, *(p for below in first for p in subfolders(below))])
