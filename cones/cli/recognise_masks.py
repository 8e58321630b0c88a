"""Masks in a folder of a user's own pictures: where they are, what they are called, and what their values stand for."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cones.common.choices import Values
from cones.common.errors import DataError
from cones.data.folders import class_folders, pictures_in, split_folders, subfolders
from cones.data.masknames import ending_of, is_of_masks, masks_beside, pictures_and_masks
from cones.readers.masks.marks import open_mask, values_in
from cones.readers.masks.pairs import Masked, pair_masks
from cones.readers.masks.settings import MaskData
from cones.readers.subject import FEWEST

TRIED = 50
"""Masks that are opened to see their values."""


def masks_in(source: Path, name: str, values: Values | None, open_task: bool = False) -> MaskData | None:
    """The entry, called `name`, that reads a folder with masks; None for one without.

    Known are a folder of pictures beside one of masks, in `source`, in its splits or in a folder for each picture, and
    masks beside their pictures. `DataError` for masks that do not go with their pictures, which says, where the task is
    open, what else the folder can be read as; and for values that can be read in several ways.
    """
    try:
        where = masks_in_folders(source) or _beside(source)
        if where is None:
            return None
        pictures, _ = pair_masks(MaskData(kind="masks", source=str(source), **where))
    except DataError as error:
        raise DataError(f"{error}{_other_readings(source) if open_task else ''}") from None
    several = any(len(picture.masks) > 1 for picture in pictures)
    objects = {"objects": "whole" if several else "components"}
    return MaskData(kind="masks", source=name, **where, **objects | _values(pictures, values, source))


def masks_in_folders(source: Path) -> dict[str, Any] | None:
    """How a folder of pictures and one of masks are called, and the ending of the masks' names."""
    for root in _roots(source):
        pair = _mask_folders(root)
        if pair:
            pictures, masks = (root / name for name in pair)
            stems = {p.relative_to(pictures).with_suffix("") for p in pictures_in(pictures)}
            endings = {ending_of(p.relative_to(masks), stems) for p in pictures_in(masks)}
            return {"pictures": pair[0], "masks": pair[1], "ending": _the_one(endings, masks)}
        for folder in subfolders(root):  # one for each picture
            if pair := _mask_folders(folder):
                return {"pictures": pair[0], "masks": pair[1]}
    return None


def _mask_folders(folder: Path) -> tuple[str, str] | None:
    """The names of the folder of pictures and of the folder of masks that lie in a folder; None unless both do.

    `DataError` if there are several of one kind.
    """
    pictures, masks = pictures_and_masks(folder)
    if len(pictures) > 1 or len(masks) > 1:
        raise DataError(
            f"{folder} has several folders of pictures or of masks ({', '.join(p.name for p in [*pictures, *masks])}); "
            "write `kind: masks` with the two to use, `pictures` and `masks`, into params.yaml"
        )
    return (pictures[0].name, masks[0].name) if pictures else None


def _beside(source: Path) -> dict[str, Any] | None:
    endings = set(masks_beside(pictures_in(source)).values())
    return {"pictures": "", "masks": "", "ending": _the_one(endings, source)} if endings else None


def _the_one(endings: Iterable[str | None], folder: Path) -> str:
    """The one ending among those of masks, of which None are no masks of a picture."""
    there = sorted({ending for ending in endings if ending is not None})
    if len(there) > 1:
        raise DataError(
            f"the masks in {folder} are called after their pictures in several ways, with "
            f"{' and '.join(e or 'nothing' for e in there)} at the end; give all of them one"
        )
    return there[0] if there else ""


def _roots(source: Path) -> list[Path]:
    """The folders of the splits, or the folder itself."""
    try:
        return list(split_folders(source).values())
    except DataError:  # the reader says what is wrong with them
        return [source]


def has_mask_folders(source: Path) -> bool:
    """Whether folders of pictures lie beside such of masks, in a folder or in those in it, however many."""
    roots = _roots(source)
    return any(pictures_and_masks(p)[1] for root in roots for p in (root, *subfolders(root)))


def by_class(source: Path) -> bool:
    """Whether several folders hold folders of pictures and of their masks each: each may be a class."""
    parts = [pictures_and_masks(p)[0] for root in _roots(source) for p in subfolders(root)]
    held = [pictures for pictures in parts if pictures]
    return len(held) > 1 and any(len(pictures_in(p)) > 1 for pictures in held for p in pictures)


def subject_masks(source: Path) -> str | None:
    """The folder, in one of a subject's pictures, that has a mask called as each of them; None if it has none of any.

    `DataError` for one that has masks of some only, and for two of them.
    """
    pictures = pictures_in(source, below=False)
    found = []
    for folder in (p for p in subfolders(source) if is_of_masks(p)):
        stems = {p.stem for p in pictures_in(folder, below=False)}
        without = [p for p in pictures if p.stem not in stems]
        if without and len(without) < len(pictures):
            raise DataError(
                f"{folder} has no mask for {without[0].name}; add {without[0].stem}.png there, take the picture "
                f"away, or move the masks out of {source} to learn from all of each picture"
            )
        if not without:
            found.append(folder.name)
    if len(found) > 1:
        raise DataError(f"{source} has masks in {' and in '.join(found)}; move one of the folders out of it")
    return found[0] if found else None


def _other_readings(source: Path) -> str:
    """How a folder can be read as plain pictures, for the end of a message; nothing if it cannot."""
    try:
        classes = class_folders(source)
    except DataError:
        classes = []
    pictures = pictures_in(source, below=False)
    as_classes = "; --task classification reads its folders as classes" if len(classes) > 1 else ""
    is_subject = len(pictures) >= FEWEST and not masks_beside(pictures)
    return as_classes + "; --task generation makes new pictures of those that lie in it" * is_subject


def _values(pictures: Sequence[Masked], wanted: Values | None, source: Path) -> dict[str, Any]:
    """The settings that say what the values of the masks stand for."""
    masks = [mask for picture in pictures for mask in picture.masks]
    values: dict[int, Path] = {}
    for mask in masks if wanted == "classes" else masks[:TRIED]:
        numbers, lossy = open_mask(mask, mask.relative_to(source).as_posix())
        if lossy and wanted in ("classes", "instances"):
            raise DataError(f"{mask} is a JPEG, which changes values, so they cannot be {wanted}; save it as PNG")
        for value in () if lossy else values_in(numbers):
            values.setdefault(value, mask)
    if wanted is None and len(values) > 1:
        shown = ", ".join(map(str, sorted(values)[:10])) + ", ..." * (len(values) > 10)
        raise DataError(
            f"the masks of {source} have the values {shown} ({values[max(values)].name}): say what they stand for, "
            "with `--values classes`, `--values instances` (single objects) or `--values shades` (of one mask)"
        )
    match wanted:
        case "classes":
            return {"values": sorted(values)} if values else {}
        case "instances":
            return {"objects": "instances"}
        case "shades":
            return {"threshold": 128 if max(values, default=0) < 256 else 32768}
    return {}
