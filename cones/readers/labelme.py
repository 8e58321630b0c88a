"""LabelMe's JSON: shapes drawn around the objects of a picture, one file a picture."""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cones.common.errors import DataError
from cones.common.escaping import plain, quoted
from cones.common.messages import first_mistake
from cones.common.reading import read_json_text
from cones.data.folders import files_in, is_hidden, pictures_in, split_folders
from cones.data.listing import Listed, Listing, inside, refuse_repeats
from cones.data.masks import Polygons
from cones.data.objects import Mark, label_of, labels_of
from cones.data.settings import ObjectData


class LabelMeData(ObjectData):
    """A folder of pictures with LabelMe's JSON for each."""

    kind: Literal["labelme"]

    def listing(self) -> Listing:
        return list_labelme(self)


LEAST_CORNERS = 12
"""Of the polygon that stands for a circle, as LabelMe draws it."""
LARGEST_RADIUS = 1e6
"""Pixels; beyond it a circle needs no more corners, as it is refused for lying far outside."""
POINTS = {"polygon": "three or more", "rectangle": "2 or 4", "circle": "2"}
"""How many points a shape has."""


class Part(BaseModel):
    """What is read of LabelMe's JSON; it may hold more, such as `imageData`, a copy of the picture."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class Shape(Part):
    label: str = Field(min_length=1)
    points: list[tuple[float, float]]
    """x and y in pixels: the corners of a polygon, two opposite ones of a rectangle, or the centre of a circle and a
    point of its edge."""
    group_id: int | None = None
    shape_type: str | None = "polygon"
    """Old versions write none, and draw polygons."""


class Table(Part):
    shapes: list[Shape]
    imagePath: str
    imageHeight: int | None = None
    imageWidth: int | None = None


def list_labelme(config: LabelMeData) -> Listing:
    """The classes, sorted, and the pictures that have a JSON, in whatever folder, with the splits that folders say.

    `imagePath` starts from the JSON's folder. A polygon and a circle are masks, a rectangle is a box without one; what
    has one label and one `group_id` is one object. Pictures without a JSON are reported as `not_listed`. `DataError`
    for a JSON that is not LabelMe's and for shapes without an area: points and lines.
    """
    source = Path(os.path.abspath(config.source))
    roots = split_folders(source)
    tables = {
        path: (split, _read(path))
        for split, root in roots.items()
        for path in files_in(root, ".json", below=True)
        if not is_hidden(path.relative_to(source))
    }
    if not tables:
        raise DataError(f"{source} holds no JSON; LabelMe writes one for each picture")
    classes = config.classes or sorted({shape.label for _, table in tables.values() for shape in table.shapes})
    labels, listed = labels_of(classes), []
    for path, (split, table) in tables.items():
        where = path.relative_to(source).as_posix()
        named = path.parent / table.imagePath.replace("\\", "/")
        picture = Path(os.path.normpath(inside(source, str(named), f"`imagePath` of {where}")))
        size = (table.imageHeight, table.imageWidth) if table.imageHeight and table.imageWidth else None
        marks = tuple(_marks(table, where, labels))
        listed.append(Listed(picture.relative_to(source).as_posix(), picture, -1, split, marks, size))
    refuse_repeats(listed, config.source)
    unlisted = {p.relative_to(source).as_posix() for p in pictures_in(source)} - {p.id for p in listed}
    return Listing(classes, listed, {"not_listed": sorted(unlisted)}, tuple(split for split in roots if split))


def _read(path: Path) -> Table:
    try:
        return Table.model_validate_json(read_json_text(path))
    except ValidationError as error:
        raise DataError(f"{path} is not LabelMe's JSON, {{shapes, imagePath}}: {first_mistake(error)}") from None


def _marks(table: Table, where: str, labels: Mapping[str, int]) -> Iterator[Mark]:
    """The objects of a picture; shapes of one group are one object."""
    groups: dict[object, list[tuple[int, Shape]]] = {}
    for number, shape in enumerate(table.shapes, start=1):
        alone = shape.group_id is None
        groups.setdefault(number if alone else (shape.label, shape.group_id), []).append((number, shape))
    for shapes in groups.values():
        number, first = shapes[0]
        what = f"shape {number} ({plain(first.label)})"
        outlines = [_corners(shape, f"shape {n} ({plain(shape.label)}) of {where}") for n, shape in shapes]
        xy = np.concatenate(outlines)
        masked = all(shape.shape_type != "rectangle" for _, shape in shapes)
        polygons: Polygons = [outline.flatten().tolist() for outline in outlines]
        box = (*xy.min(0).tolist(), *xy.max(0).tolist())
        yield Mark(what, label_of(first.label, labels, f"{what} of {where}"), box, polygons if masked else None)


def _corners(shape: Shape, where: str) -> np.ndarray:
    """The outline of a shape as (corners, 2) of x and y in pixels."""
    kind, points = shape.shape_type or "polygon", np.array(shape.points).reshape(-1, 2)
    if kind not in POINTS:
        raise DataError(
            f"{where} is a {quoted(kind)}; objects are read from {', '.join(POINTS)}: draw one of these, or remove it"
        )
    wrong = {"polygon": len(points) < 3, "rectangle": len(points) not in (2, 4), "circle": len(points) != 2}
    if wrong[kind]:
        raise DataError(f"{where} is a {kind} of {len(points)} points; it takes {POINTS[kind]}")
    if kind != "circle":
        return points
    radius = math.dist(*points.tolist())
    # As many corners as keep the outline within a pixel of the circle, as LabelMe's own labelme2coco has it.
    corners = (
        max(int(math.pi / math.acos(1 - 1 / min(radius, LARGEST_RADIUS))), LEAST_CORNERS)
        if radius > 1
        else LEAST_CORNERS
    )
    angle = 2 * math.pi / corners * np.arange(corners)
    return points[0] + radius * np.stack([np.sin(angle), np.cos(angle)], axis=1)
