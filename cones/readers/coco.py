"""COCO's JSON of objects: boxes, masks as polygons or run lengths, and crowds."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from cones.common.errors import DataError
from cones.common.escaping import quoted, shortened
from cones.common.messages import first_mistake
from cones.common.reading import read_json_text
from cones.common.settings import PathName, Within
from cones.data.listing import Listed, Listing, inside, refuse_repeats
from cones.data.masks import Polygons, Runs
from cones.data.objects import Mark, label_of, labels_of
from cones.data.settings import ObjectData, Pattern


def _path_or_splits(value: Any) -> Any:
    """Checked here, as a union would report each of its members at a path that the file does not have."""
    by_split = isinstance(value, dict) and {"train"} <= set(value) <= {"train", "val", "test"}
    if not isinstance(value, str) and not (by_split and all(isinstance(v, str) for v in value.values())):
        raise PydanticCustomError(
            "path_or_splits", "must be one path, or a path for train and for each of val and test that there is"
        )
    return value


PathOrSplits = Annotated[PathName | dict[str, PathName], BeforeValidator(_path_or_splits)]


WithinOrSplits = Annotated[Within | dict[str, Within], BeforeValidator(_path_or_splits)]


class CocoData(ObjectData):
    """A folder of pictures with COCO annotations, for all of them in one JSON or one a split."""

    groups_named: ClassVar[str] = "a key of each of the `images`"
    kind: Literal["coco"]
    annotations: PathOrSplits
    """The JSON by its path from `source`, its pictures then being divided, or one for each split; of `val` and `test`
    the one that is left out is divided off `train`."""
    pictures: WithinOrSplits = ""
    """The folder that each `file_name` starts from, by its path from `source`; or one for each split."""

    @model_validator(mode="after")
    def _pictures_as_annotations(self) -> "CocoData":
        if isinstance(self.pictures, dict) and isinstance(self.annotations, str):
            raise PydanticCustomError("pictures", "`pictures` by split needs `annotations` by split")
        if isinstance(self.pictures, dict) and set(self.pictures) != set(self.annotations):
            raise PydanticCustomError("pictures", "`pictures` must name the splits that `annotations` names")
        return self

    def listing(self) -> Listing:
        return list_coco(self)


Identity = int | str


class Part(BaseModel):
    """What is read of COCO's JSON; it may hold more."""

    model_config = ConfigDict(strict=True, frozen=True)


class Picture(Part):
    model_config = ConfigDict(extra="allow")  # what `group_by` names

    id: Identity
    file_name: str
    height: int | None = None
    width: int | None = None


class Category(Part):
    id: Identity
    name: str


class Annotation(Part):
    id: Identity | None = None
    image_id: Identity
    category_id: Identity
    bbox: tuple[float, float, float, float]
    """x, y, width and height in pixels."""
    segmentation: Polygons | Runs | None = None
    iscrowd: Annotated[bool, Field(strict=False)] = False
    """COCO writes it as 0 or 1, which a strict bool is not."""


class Table(Part):
    images: list[Picture]
    annotations: list[Annotation]
    categories: list[Category]


def list_coco(config: CocoData) -> Listing:
    """The classes, in the order of `categories`, and the pictures of one COCO file or of one a split.

    A category is known by its name, so the files of several splits may number them differently. An empty
    `segmentation` is none. `DataError` for an annotation whose picture or category its file does not list, and for
    what is listed twice.
    """
    source = Path(config.source)
    files = config.annotations if isinstance(config.annotations, dict) else {"": config.annotations}
    folders = config.pictures if isinstance(config.pictures, dict) else dict.fromkeys(files, config.pictures)
    tables = {split: _read(inside(source, name, "`annotations`")) for split, name in files.items()}
    classes = config.classes or list(dict.fromkeys(c.name for t in tables.values() for c in t.categories))
    listed: list[Listed] = []
    for split, table in tables.items():
        folder = inside(source, folders[split], "`pictures`")
        groups = _groups(table, config.group_by, files[split])
        listed += _pictures(table, folder, files[split], split, labels_of(classes), groups)
    refuse_repeats(listed, config.source)
    return Listing(classes, listed, {}, tuple(split for split in files if split))


def _read(path: Path) -> Table:
    missing = f"there is no file {path}; `annotations` names COCO's JSON in the folder `source`"
    try:
        return Table.model_validate_json(read_json_text(path, missing))
    except ValidationError as error:
        raise DataError(
            f"{path} is not a COCO file of objects, {{images, annotations, categories}}: {first_mistake(error)}"
        ) from None


def _groups(table: Table, key: str | Pattern | None, file: str) -> list[str]:
    """What each picture has at a key, or an empty text."""
    values = [dict(picture).get(key, "") if isinstance(key, str) else "" for picture in table.images]
    for picture, value in zip(table.images, values):
        if not isinstance(value, str | int | None) or isinstance(value, bool):
            raise DataError(
                f"the picture {shortened(picture.id)} of {file} has {shortened(value)} at {quoted(key)}, which "
                "`group_by` names; a group is text or a whole number"
            )
    return ["" if value is None else str(value).strip() for value in values]


def _pictures(
    table: Table, folder: Path, file: str, split: str, labels: Mapping[str, int], groups: Sequence[str]
) -> Iterator[Listed]:
    names = _by_id([(c.id, c.name) for c in table.categories], f"the category of {file}")
    if len(set(names.values())) < len(names):
        twice = next(name for name, count in Counter(names.values()).items() if count > 1)
        raise DataError(f"{file} lists the category {quoted(twice)} under several ids; give it one")
    marks: dict[Identity, list[Mark]] = {
        i: [] for i in _by_id([(p.id, p) for p in table.images], f"the picture of {file}")
    }
    for number, annotation in enumerate(table.annotations):
        called = shortened(annotation.id).strip("'") if annotation.id is not None else f"at index {number}"
        where = f"annotation {called} of {file}"
        if annotation.image_id not in marks:
            raise DataError(
                f"{where} is for the picture {shortened(annotation.image_id)}, which is not among its `images`"
            )
        if annotation.category_id not in names:
            raise DataError(
                f"{where} has category_id {shortened(annotation.category_id)}, which is not among its `categories`"
            )
        name = names[annotation.category_id]
        x, y, width, height = annotation.bbox
        marks[annotation.image_id].append(
            Mark(
                f"annotation {called} ({name})",
                label_of(name, labels, where),
                (x, y, x + width, y + height),
                annotation.segmentation or None,
                annotation.iscrowd,
            )
        )
    for picture, group in zip(table.images, groups):
        size = (picture.height, picture.width) if picture.height and picture.width else None
        path = inside(folder, picture.file_name, file)
        yield Listed(picture.file_name, path, -1, split, tuple(marks[picture.id]), size, group)


def _by_id(entries: Sequence[tuple[Identity, Any]], what: str) -> dict[Identity, Any]:
    """What is listed, by its id; `DataError` for an id that stands for two."""
    found = dict(entries)
    if len(found) < len(entries):
        twice = next(i for i, count in Counter(i for i, _ in entries).items() if count > 1)
        raise DataError(f"{what} with the id {shortened(twice)} is listed more than once; give each an id of its own")
    return found
