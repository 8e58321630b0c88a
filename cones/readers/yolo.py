"""YOLO's layout as Ultralytics has it: a YAML of names and splits, and a text file of boxes or polygons a picture."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cones.common.errors import DataError
from cones.common.escaping import plain, printable, quoted, shortened
from cones.common.messages import first_mistake
from cones.common.reading import read_lines
from cones.common.settings import PathName
from cones.common.yaml_file import read_yaml
from cones.data.folders import entries, files_in, is_hidden
from cones.data.listing import Listed, Listing, inside, refuse_repeats
from cones.data.objects import Mark, label_of, labels_of
from cones.data.pictures import SUFFIXES
from cones.data.prepared import SPLITS
from cones.data.settings import ObjectData
from cones.data.splits import split_names


class YoloData(ObjectData):
    """A folder with the `data.yaml` and the label files of YOLO, as Ultralytics lays them out."""

    kind: Literal["yolo"]
    table: PathName = "data.yaml"
    """The YAML that names the classes and the splits, by its path from `source`."""

    def listing(self) -> Listing:
        return list_yolo(self)


LARGEST_SHARE = 2
"""A number beyond this is in pixels: a box that sticks out of its picture does not stick out so far."""

MOST_BYTES, MOST_NODES = 4 * 2**20, 500_000
"""Of a YAML: it may name as many classes."""

Paths = str | list[str] | None


class Table(BaseModel):
    """What is read of `data.yaml`; it may hold more."""

    model_config = ConfigDict(strict=True, frozen=True)

    path: str | None = None
    names: list[str] | dict[Annotated[int, Field(ge=0)], str]
    train: Paths = None
    val: Paths = None
    test: Paths = None

    @property
    def numbered(self) -> dict[int, str]:
        """The names of the classes by their numbers in the label files."""
        return self.names if isinstance(self.names, dict) else dict(enumerate(self.names))


def list_yolo(config: YoloData) -> Listing:
    """The classes, in the order of their numbers, and the pictures of the splits; `val` may be called `valid`.

    A split is a folder, a .txt of pictures by their paths from its own folder, or several of these, from `path`, which
    starts from the YAML's folder; as Ultralytics has it, a `../` before what is not there is dropped. The labels of
    images/x.jpg are in labels/x.txt, or beside it where no folder is called images; without that file a picture shows
    no object. Label files of no picture are reported as `not_listed`. `DataError` for what is not there or leads out
    of `source`, for a class without a name, and for a line that is neither a box nor a polygon.
    """
    source = Path(os.path.abspath(config.source))  # a YAML may hold absolute paths
    yaml = inside(source, config.table, "`table`")
    table = _read(yaml)
    classes = config.classes or [name for _, name in sorted(table.numbered.items())]
    report: dict[str, list[str]] = {"not_pictures": [], "not_listed": []}
    listed: list[Listed] = []
    label_files: set[Path] = set()
    labels, names = labels_of(classes), table.numbered
    splits = _splits(table, yaml, source)
    for split, paths in splits.items():
        for picture in (p for path in paths for p in _pictures(path, source, report)):
            name = picture.relative_to(source).as_posix()
            label = _label_file(name)
            label_files.add(source / label)
            marks = tuple(_marks(source, label, names, labels))
            listed.append(Listed(name, picture, -1, split, marks))
    refuse_repeats(listed, config.source)
    there = {found for folder in {file.parent for file in label_files} for found in files_in(folder, ".txt")}
    report["not_listed"] = sorted(p.relative_to(source).as_posix() for p in there - label_files)
    return Listing(classes, listed, report, tuple(split for split in splits if split))


def yolo_yaml(path: Path, missing: str | None = None) -> Any:
    """The content of a YAML; `DataError` for what is none, or is larger or deeper than any list of classes."""
    return read_yaml(path, missing, MOST_BYTES, MOST_NODES, DataError)


def _read(path: Path) -> Table:
    content = yolo_yaml(path, f"there is no file {path}; `table` names YOLO's YAML in the folder `source`")
    try:
        if isinstance(content, dict):
            written = split_names((key for key, value in content.items() if isinstance(key, str) and value), str(path))
            content |= {split: content[name] for split, name in written.items()}
        table = Table.model_validate(content)
    except ValidationError as error:
        raise DataError(f"{path} is not YOLO's YAML of names, train, val and test: {first_mistake(error)}") from None
    names = list(table.numbered.values())
    if not names:
        raise DataError(f"{path} names no class; give `names` in the order of their numbers")
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise DataError(f"{path} names the class {quoted(twice)} twice; give each number its own name")
    return table


def _splits(table: Table, yaml: Path, source: Path) -> dict[str, list[Path]]:
    """The folders and lists of each split; under an empty name, where they are to be divided."""
    root = yaml.parent / (table.path or "")
    if not os.path.isdir(root):
        raise DataError(
            f"`path` of {yaml} leads to {plain(str(root), 300)}, which is no folder; it starts from the "
            "YAML's: leave it out"
        )
    written = {split: getattr(table, split) for split in SPLITS if getattr(table, split)}
    if not written:
        raise DataError(f"{yaml} names no pictures; give `train`, and `val` and `test` where there are some")
    splits: dict[str, list[Path]] = {}
    for split, names in written.items():
        for name in [names] if isinstance(names, str) else names:
            path = root / name
            if name.startswith("../") and not os.path.exists(path):
                path = root / name[3:]
            path = Path(os.path.normpath(inside(source, str(path), f"`{split}` of {yaml.name}")))
            if not path.is_dir() and not (path.is_file() and path.suffix == ".txt"):
                raise DataError(
                    f"{printable(str(path))}, which `{split}` of {yaml.name} names, is neither a folder nor a .txt list"
                )
            splits.setdefault(split if len(written) > 1 else "", []).append(path)
    return splits


def _pictures(path: Path, source: Path, report: dict[str, list[str]]) -> Iterator[Path]:
    """The pictures of a folder or of a list."""
    if path.is_file():
        for number, line in enumerate(read_lines(path), start=1):
            if line.strip():
                where = f"line {number} of {path.name}"
                yield Path(os.path.normpath(inside(source, str(path.parent / line.strip()), where)))
        return
    for found in (p for p in entries(path) if not p.is_dir() and not is_hidden(p.relative_to(path))):
        if found.suffix.lower() in SUFFIXES:
            yield found
        elif found.suffix != ".txt":  # labels may lie beside their pictures
            report["not_pictures"].append(found.relative_to(source).as_posix())


def _label_file(picture: str) -> Path:
    """Where the labels of a picture are, both by their paths from `source`."""
    before, images, after = f"/{picture}".rpartition("/images/")
    return Path(f"{before}/labels/{after}"[1:] if images else picture).with_suffix(".txt")


def _marks(source: Path, label: Path, names: Mapping[int, str], labels: Mapping[str, int]) -> Iterator[Mark]:
    """The objects of a label file: `class cx cy w h`, or `class x1 y1 x2 y2 ...` around the object, in shares."""
    there = os.path.lexists(source / label)  # a link to nowhere is no lack of objects
    for number, line in enumerate(read_lines(source / label) if there else [], start=1):
        if not line.strip():
            continue
        where = f"line {number} of {printable(label.as_posix())}"
        try:
            category, *shares = (float(word) for word in line.split())
        except ValueError:
            raise DataError(f"{where} must hold numbers only, got {shortened(line)}") from None
        if category not in names:
            raise DataError(f"{where} has the class {category:g}, and the YAML names {_ranges(names)}; name it there")
        if len(shares) != 4 and (len(shares) < 6 or len(shares) % 2):
            raise DataError(
                f"{where} has {len(shares)} numbers after the class; a box takes 4, a polygon x and y of each of at "
                "least three points"
            )
        far = [share for share in shares if abs(share) > LARGEST_SHARE]
        if far:
            raise DataError(f"{where} has {far[0]:g}; YOLO's numbers are shares of the picture's sides, from 0 to 1")
        name = names[int(category)]
        box = _around(shares) if len(shares) > 4 else _centred(*shares)
        outline = [shares] if len(shares) > 4 else None
        yield Mark(f"line {number} ({plain(name)})", label_of(name, labels, where), box, outline, relative=True)


def _centred(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _around(points: list[float]) -> tuple[float, float, float, float]:
    return (min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2]))


def _ranges(names: Mapping[int, str]) -> str:
    return ", ".join(f"{shortened(number)} {plain(name, 40)}" for number, name in sorted(names.items())[:10])
