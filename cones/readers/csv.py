"""Lists of pictures in one file: a CSV table, or the JSON splits that CoOp and its successors share."""

import csv
import io
from collections import Counter
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from cones.common.errors import DataError
from cones.common.escaping import plain, quoted, shortened
from cones.common.messages import first_mistake, nearest
from cones.common.reading import read_json_text, read_text
from cones.data.folders import files_in
from cones.data.listing import Listed, Listing, inside
from cones.data.prepared import SPLITS
from cones.data.settings import CoOpData, TableData
from cones.data.splits import split_names


class KnownSet(NamedTuple):
    """A data set of CoOp's benchmark: the folder of its pictures, and the sentence its authors describe it with."""

    pictures: str
    template: str


KNOWN_SETS = {
    "Caltech101": KnownSet("101_ObjectCategories", "a photo of a {}."),
    "DescribableTextures": KnownSet("images", "{} texture."),
    "EuroSAT": KnownSet("2750", "a centered satellite photo of {}."),
    "Food101": KnownSet("images", "a photo of {}, a type of food."),
    "OxfordFlowers": KnownSet("jpg", "a photo of a {}, a type of flower."),
    "OxfordPets": KnownSet("images", "a photo of a {}, a type of pet."),
    "StanfordCars": KnownSet("", "a photo of a {}."),
    "SUN397": KnownSet("SUN397", "a photo of a {}."),
    "UCF101": KnownSet("UCF-101-midframes", "a photo of a person doing {}."),
}
"""By the name in `split_zhou_<name>.json` (CoOp's DATASETS.md, and its table of templates for zero-shot CLIP)."""


def list_table(config: TableData) -> Listing:
    """The classes and pictures of a CSV with the columns `path`, `label` and, if wanted, `split`.

    The column may lack `val` or `test`, or say `valid`; `DataError` for one without `train`, and for an empty place.
    """
    source = Path(config.source)
    lines = _lines(inside(source, config.table, "`table`"))
    classes = sorted({line["label"] for _, line in lines})
    label_of = {name: label for label, name in enumerate(classes)}
    written = split_names((line.get("split", "") for _, line in lines), f"the column `split` of {config.table}")
    splits = {name: split for split, name in written.items()}
    listed: list[Listed] = []
    names: set[str] = set()
    for number, line in lines:
        where = f"line {number} of {config.table}"
        if "split" in line and line["split"] not in splits:
            raise DataError(
                f"the split in {where} must be one of {', '.join(SPLITS)}, got {shortened(line['split'])}; without the "
                "column `split` the pictures are divided at random"
            )
        split = splits.get(line.get("split", ""), "")
        path = inside(source, line["path"], where)
        if line["path"] in names and config.duplicates == "refuse":
            raise DataError(
                f"{where} names {quoted(line['path'])} once more; each picture stands in the table once, unless "
                "`duplicates` says which is kept"
            )
        names.add(line["path"])
        listed.append(Listed(line["path"], path, label_of[line["label"]], split))
    return Listing(classes, listed, {})


def _lines(path: Path) -> list[tuple[int, dict[str, str]]]:
    text = read_text(path, f"there is no table {path}; `table` names a CSV in the folder `source`")
    try:
        reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
        columns = [c.strip() for c in next(reader, [])]
        missing = [c for c in ("path", "label") if c not in columns]
        if missing:
            raise DataError(
                f"{path} has no column `{missing[0]}`; it must be a comma-separated table whose first line names "
                f"the columns path, label and, if wanted, split; its first line is {shortened(','.join(columns))}"
            )
        twice = next((c for c, count in Counter(columns).items() if c and count > 1), None)
        if twice is not None:
            raise DataError(f"{path} has two columns {quoted(twice)}; keep the one that counts, or rename the other")
        lines = [(reader.line_num, _line(values, columns, reader.line_num, path)) for values in reader if values]
    except csv.Error as error:
        raise DataError(
            f"line {reader.line_num} of {path} cannot be read as one of a CSV: {error}; correct it"
        ) from None
    for number, line in lines:
        if not (line["path"] and line["label"]):
            raise DataError(f"line {number} of {path} has no {'path' if not line['path'] else 'label'}; fill it in")
    return lines


def _line(values: list[str], columns: list[str], number: int, path: Path) -> dict[str, str]:
    """A line by its columns; `DataError` for one with more fields than there are columns."""
    if any(value.strip() for value in values[len(columns) :]):
        raise DataError(
            f"line {number} of {path} has {len(values)} fields, and the first line names {len(columns)}; put what "
            "holds a comma in double quotes"
        )
    return {c: value.strip() for c, value in zip_longest(columns, values[: len(columns)], fillvalue="") if c}


def list_coop(config: CoOpData) -> Listing:
    """The classes and pictures of a data set in CoOp's layout, with its own splits; `val` or `test` may be missing."""
    source = Path(config.source)
    path = coop_split(source, config.split)
    try:
        content = TypeAdapter(dict[str, list[tuple[str, int, str]]]).validate_json(read_json_text(path), strict=True)
    except ValidationError as error:
        raise DataError(
            f"{path} is not one of CoOp's splits, {{split: [[path, label, class], ...]}}: {first_mistake(error)}"
        ) from None
    splits = split_names(content, str(path))
    if set(content) != set(splits.values()) or not content:
        has = plain(", ".join(content), 300)
        raise DataError(f"{path} has the splits {has}; it may have {', '.join(SPLITS)}")
    names: dict[int, str] = {}
    for label, name in ((label, name) for lines in content.values() for _, label, name in lines):
        if names.setdefault(label, name) != name:
            raise DataError(f"{path} calls the class {shortened(label)} both {quoted(names[label])} and {quoted(name)}")
    if sorted(names) != list(range(len(names))):
        raise DataError(f"{path} must number its classes from 0 without gaps; it has {shortened(sorted(names)[:10])}")
    known = known_set(path)
    folder = config.pictures if config.pictures is not None else known.pictures if known else ""
    pictures = inside(source, folder, "`pictures`")
    listed = [
        Listed(file, inside(pictures, file, path.name), label, split)
        for split, name in splits.items()
        for file, label, _ in content[name]
    ]
    report = {"templates": [known.template]} if known else {}
    return Listing([names[label] for label in sorted(names)], listed, report, tuple(splits))


def coop_split(source: Path, name: str | None = None) -> Path:
    """The split file of a folder in CoOp's layout; `DataError` if there is none, or several to choose from."""
    found = [p for p in files_in(source, ".json") if p.name.startswith("split_zhou_")]
    if name is not None:
        path = inside(source, name, "`split`")
        if not path.is_file():
            raise DataError(f"there is no split {path}{nearest(name, [f.name for f in found])}")
        return path
    if len(found) != 1:
        raise DataError(f"{source} holds {len(found)} files split_zhou_*.json; name the one to use with `split`")
    return found[0]


def known_set(path: Path) -> KnownSet | None:
    """What is known of the data set that a split file belongs to."""
    return KNOWN_SETS.get(path.stem.removeprefix("split_zhou_"))
