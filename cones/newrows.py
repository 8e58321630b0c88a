"""Rows for a user's own pictures: see what lies in a folder, and write what it needs into params.yaml."""

import csv
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from cones.config import CoOpData, FolderData, Name, TableData, load_params
from cones.data import list_pictures
from cones.errors import DataError, ParamsError
from cones.files import fresh_file

MOST_SHOTS = 16


@dataclass(frozen=True)
class Found:
    """What lies in a folder: the entry of the table `data` that reads it, its classes, and how many pictures they have.

    `fewest` is the number of training pictures of the class with the fewest, after the division into splits.
    """

    entry: dict[str, str]
    classes: list[str]
    counts: dict[str, int]
    has_splits: bool
    fewest: int


def look_at(source: Path) -> Found:
    """Find out how a folder, or a table of pictures, is to be read; nothing is opened but the list itself.

    A CSV file with the columns path and label, CoOp's `split_zhou_*.json` or the folder of one, and class folders are
    known. Raises `DataError` for anything else.
    """
    config = _config(source)
    listing = list_pictures(config)
    labels = Counter(p.label for p in listing.pictures)
    train = Counter(p.label for p in listing.pictures if p.split == "train")
    has_splits = any(p.split for p in listing.pictures)
    share = 1 - config.val_fraction - config.test_fraction
    fewest = min((train[i] if has_splits else int(labels[i] * share) for i in range(len(listing.classes))), default=0)
    if len(listing.classes) < 2 or fewest < 1:
        raise DataError(
            f"{source} has {len(listing.classes)} classes, the smallest with {fewest} pictures to train on; it takes "
            "at least two class folders (or a CSV with the columns path and label) and five pictures of each class"
        )
    counts = {name: labels[i] for i, name in enumerate(listing.classes)}
    entry = {k: v for k, v in config.model_dump(exclude_defaults=True).items() if v is not None}
    return Found({"kind": entry.pop("kind"), **entry}, listing.classes, counts, has_splits, fewest)


def _config(source: Path) -> FolderData | TableData | CoOpData:
    where = source if source.is_dir() else source.parent
    name = _as_written(where)
    if source.suffix.lower() == ".csv":
        return TableData(kind="csv", source=name, table=source.name)
    if source.suffix.lower() == ".json":
        return CoOpData(kind="coop", source=name, split=source.name)
    if not source.is_dir():
        raise DataError(f"{source} is no folder, CSV or split_zhou_*.json; give the folder of your pictures")
    if list(source.glob("split_zhou_*.json")):
        return CoOpData(kind="coop", source=name)
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


def write_rows(
    name: str,
    found: Found,
    backbone: str,
    shots: int,
    say: Mapping[str, str],
    drop_demo: bool,
    path: Path = Path("params.yaml"),
) -> list[str]:
    """Add a data set, a concept and three rows to params.yaml, whole or not at all; the names of the rows.

    `say` tells what a class is called in a sentence. With `drop_demo` everything over generated data goes. Comments
    and the other entries stay as they are. Raises `ParamsError` if the name is taken or the result would not be sound.
    """
    params = load_params(path)
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError:
        raise ParamsError(f"`{name}` cannot be a name: letters, digits, `.`, `_` and `-`, at most 80") from None
    params.entry("backbones", backbone)
    methods: dict[str, dict] = {
        f"{name}-zero-shot": {"name": "zero_shot"},
        f"{name}-coop": {"name": "coop"},
        f"{name}-cones": {"name": "cones", "init": "blend"},
    }
    for table, entries in (("data", [name]), ("concepts", [name]), ("runs", list(methods))):
        for entry in entries:
            if entry in getattr(params, table):
                raise ParamsError(f"`{entry}` is in the table `{table}` of {path} already; choose another name")
    yaml = YAML()
    yaml.width = 160
    yaml.preserve_quotes = True
    content = yaml.load(path.read_text(encoding="utf-8"))
    if drop_demo:
        _drop(content, {d for d, c in params.data.items() if c.kind == "world"})
    content["data"][name] = _line(found.entry)
    concept = {"task": "classification", "backbone": backbone, "data": name, "shots": shots}
    names = {c: s for c, s in say.items() if s != c.replace("_", " ")}
    content["concepts"][name] = _line({**concept, "seed": 0, **({"names": _line(names)} if names else {})})
    for row, method in methods.items():
        content["runs"][row] = _line({"concept": name, "method": _line(method)})
    with fresh_file(path) as temporary:
        with temporary.open("w", encoding="utf-8") as file:
            yaml.dump(content, file)
        load_params(temporary)
        os.chmod(temporary, path.stat().st_mode)
    return list(methods)


def _drop(content: Any, data: set[str]) -> None:
    concepts = {c for c, of in content["concepts"].items() if of["data"] in data}
    rows = {r for r, of in content["runs"].items() if of["concept"] in concepts}
    for table, names in (("data", data), ("concepts", concepts), ("runs", rows)):
        for name in names:
            del content[table][name]


def _line(entry: Mapping[str, Any]) -> CommentedMap:
    """An entry as it stands in params.yaml: on one line."""
    mapping = CommentedMap(entry)
    mapping.fa.set_flow_style()
    return mapping
