"""Data sets as CoOp and its successors lay them out, with the JSON splits that they share."""

from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import TypeAdapter, ValidationError

from cones.common.errors import DataError
from cones.common.escaping import plain, quoted, shortened
from cones.common.messages import first_mistake, nearest
from cones.common.reading import read_json_text
from cones.common.settings import PathName, Within
from cones.data.folders import files_in
from cones.data.listing import Listed, Listing, inside
from cones.data.prepared import SPLITS
from cones.data.settings import PictureData
from cones.data.splits import split_names


class CoOpData(PictureData):
    """A data set as CoOp and its successors lay it out, with its `split_zhou_<name>.json`."""

    kind: Literal["coop"]
    split: PathName | None = None
    """The split file, by its path from `source`; None: the only one there."""
    pictures: Within | None = None
    """The folder of the pictures, by its path from `source`; None: as CoOp has it for this data set."""

    def listing(self) -> Listing:
        return list_coop(self)


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
