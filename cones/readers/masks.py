"""Pictures with their masks: in a folder of masks, beside the pictures, or in a folder for each picture.

How a mask is read:

- Lossless ones have few values. With `values` each stands for a class; with `objects: instances` each is an object;
  else there is one value beside 0 in all masks of the data set, and what has it is marked. More values are refused.
- In a JPEG, or with `threshold`, what is at least the threshold (128 in a JPEG) is marked. A JPEG that is neither black
  nor reaches it is refused, and so is one with `values` or `objects: instances`: JPEG changes values.
- A palette's numbers count and not its colours. Colours, transparency and several pictures in one file are refused.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from cones.common.errors import DataError
from cones.common.escaping import printable
from cones.common.settings import Count, Within, each_once
from cones.data.folders import pictures_in, split_folders, subfolders
from cones.data.listing import Listed, Listing, inside, refuse_repeats
from cones.data.masks import Runs, encode_part
from cones.data.objects import Mark
from cones.data.pictures import channel_bits, frames_of, stored
from cones.data.settings import ObjectData

Value = Annotated[int, Field(ge=0, lt=2**32)]
"""Of a pixel in a mask."""


class MaskData(ObjectData):
    """Pictures whose objects are marked in pictures of their own, the masks."""

    kind: Literal["masks"]
    pictures: Within = "images"
    """The folder of the pictures: in `source`, below its train, val and test (or with these below it), or, with one
    picture each, in every folder of `source`. Empty: they lie in these places themselves."""
    masks: Within = "masks"
    """The folder of the masks, likewise. The mask of <pictures>/a/x.jpg is <masks>/a/x.png, or all in <masks>/a/x/;
    of a folder with one picture all that is in <masks>."""
    ending: Within = ""
    """What a mask's name has after its picture's: `_mask` for x_mask.png, and x_mask_1.png if there are several."""
    objects: Literal["components", "whole", "instances"] = "components"
    """What an object is: each connected part of what is marked (pixels that touch at a corner are connected), all of
    it, or all pixels of one value."""
    values: Annotated[list[Annotated[Value, Field(ge=1)]], Field(min_length=1), AfterValidator(each_once)] | None = None
    """Values that stand for the classes, in the order of `classes`; without `classes` they are the names. 0 is the
    ground, any other value an error. None: there is one class."""
    ignore: list[Value] = []
    """Values that stand for nothing, such as 255 for what was left open."""
    threshold: int | None = Field(None, ge=1, lt=2**32)
    """The least value that is marked. None: all but 0, where the masks have one other value and any more is an error;
    in a JPEG, whose values are only nearly black and white, 128."""
    smallest: Count = 1
    """Pixels that an object has at least; smaller ones are left out and counted."""

    @model_validator(mode="after")
    def _one_reading(self) -> "MaskData":
        if self.pictures == self.masks and not self.ending:
            raise PydanticCustomError("ending", "masks beside their pictures need an `ending`, such as _mask")
        if self.values is not None and (self.threshold is not None or self.objects == "instances"):
            raise PydanticCustomError("values", "`values` go with neither a `threshold` nor `objects: instances`")
        classes = 1 if self.values is None else len(self.values)
        if self.classes is not None and len(self.classes) != classes:
            raise PydanticCustomError(
                "classes",
                "`classes` must name {n}, as {why}",
                {"n": classes, "why": "`values` has as many" if self.values else "without `values` there is one class"},
            )
        return self

    def listing(self) -> Listing:
        return list_masks(self)


CLASS = "object"
"""The one class where the configuration names none."""
LOSSY = {"JPEG", "MPO"}
JPEG_THRESHOLD = 128
BLACK = 32
"""A JPEG whose brightest value is below it is black."""
MOST_OBJECTS = 10_000
"""In one mask; more are noise."""


@dataclass(frozen=True)
class Masked:
    """A picture with the files of its masks."""

    name: str
    path: Path
    split: str
    masks: list[Path]


@dataclass
class _Reading:
    """What is known of all masks so far: the one value that marks, with the mask that had it first."""

    config: MaskData
    marking: tuple[int, str] | None = None
    small: list[str] = field(default_factory=list)


def list_masks(config: MaskData) -> Listing:
    """The classes and the pictures with what their masks mark; what is neither is reported as `not_listed`.

    `DataError` for a picture without a mask (one that shows nothing has a black one), and for masks that no rule reads.
    """
    source = Path(config.source)
    classes = config.classes or ([CLASS] if config.values is None else [str(v) for v in config.values])
    pictures, left = pair_masks(config)
    splits = dict.fromkeys(split for split, *_ in _places(config) if split)
    reading = _Reading(config)
    listed = [_listed(picture, reading, source) for picture in pictures]
    refuse_repeats(listed, config.source)
    return Listing(classes, listed, {"not_listed": left, "too_small": reading.small}, tuple(splits))


def pair_masks(config: MaskData) -> tuple[list[Masked], list[str]]:
    """The pictures with their masks, and the names of pictures and masks left over; nothing is opened."""
    source = Path(config.source)
    pictures: list[Masked] = []
    for split, folder, masks, alone in _places(config):
        of_picture = _pairs(folder, masks, alone, config)
        pictures += [Masked(p.relative_to(source).as_posix(), p, split, files) for p, files in of_picture.items()]
    if not pictures:
        raise DataError(
            f"{source} holds no pictures in `{config.pictures or '.'}`, nor in a folder of that name below it; "
            "`pictures` and `masks` name the two folders"
        )
    used = {path for picture in pictures for path in (picture.path, *picture.masks)}
    return pictures, [p.relative_to(source).as_posix() for p in pictures_in(source) if p not in used]


def _places(config: MaskData) -> Iterator[tuple[str, Path, Path, bool]]:
    """Each folder of pictures: its split, where its masks are, and whether one picture may have it for itself."""
    source = Path(config.source)
    within, masks = inside(source, config.pictures, "`pictures`"), inside(source, config.masks, "`masks`")
    if config.pictures and within.is_dir():
        for split, folder in split_folders(within).items():
            yield split, folder, masks / folder.relative_to(within), False
        return
    for split, root in split_folders(source).items():
        if (root / config.pictures).is_dir():
            yield split, root / config.pictures, root / config.masks, False
            continue
        for folder in subfolders(root):
            if (folder / config.pictures).is_dir():
                yield split, folder / config.pictures, folder / config.masks, True
            elif pictures_in(folder):
                raise DataError(f"{folder} holds pictures and no folder `{config.pictures}`; move them into one")


def _pairs(folder: Path, masks: Path, alone: bool, config: MaskData) -> dict[Path, list[Path]]:
    """The masks of each picture of a folder."""
    if not masks.is_dir():
        raise DataError(f"{folder} has no masks: there is no folder {masks}; `masks` names it")
    marked = pictures_in(masks)
    named: dict[Path, list[Path]] = {}
    for mask in marked:
        path = mask.relative_to(masks)
        stem = re.fullmatch(rf"(.+){re.escape(config.ending)}(?:[ _-]?\d+)?", path.stem) if config.ending else None
        if stem or not config.ending:
            named.setdefault(path.with_name(stem[1]) if stem else path.with_suffix(""), []).append(mask)
    pictures = pictures_in(folder)
    if folder == masks:  # the masks are among them
        of_mask = {mask for files in named.values() for mask in files}
        pictures = [p for p in pictures if p not in of_mask]
        marked = [p for p in marked if p in of_mask]
    if alone and len(pictures) == 1:
        return {pictures[0]: marked}
    within: dict[Path, list[Path]] = {}
    for mask in marked:
        within.setdefault(mask.relative_to(masks).parent, []).append(mask)
    found: dict[Path, list[Path]] = {}
    for picture in pictures:
        path = picture.relative_to(folder).with_suffix("")
        files = named.get(path) or within.get(path, [])
        if len(named.get(path, ())) > 1 and not config.ending:
            raise DataError(f"{picture} has the masks {' and '.join(m.name for m in files)}; take one of them away")
        if not files and not (masks / path).is_dir():
            wanted = masks / path.with_name(f"{path.name}{config.ending}.*")
            raise DataError(
                f"{picture} has no mask; it would be {wanted}, and a picture of nothing has a black one: add it, take "
                "the picture away, or set what masks are called with `ending`"
            )
        found[picture] = files
    return found


def _listed(picture: Masked, reading: _Reading, source: Path) -> Listed:
    marks: list[Mark] = []
    sizes: dict[tuple[int, int], str] = {}
    for mask in picture.masks:
        name = mask.relative_to(source).as_posix()
        numbers, lossy = open_mask(mask, name)
        sizes.setdefault((numbers.shape[0], numbers.shape[1]), name)
        marks += _marks(numbers, lossy, name, reading)
    if len(sizes) > 1:
        (one, first), (other, second), *_ = sizes.items()
        raise DataError(f"{first} has {one[1]} x {one[0]} pixels and {second} {other[1]} x {other[0]}, for one picture")
    return Listed(picture.name, picture.path, -1, picture.split, tuple(marks), next(iter(sizes), None))


def open_mask(path: Path, name: str) -> tuple[np.ndarray, bool]:
    """The values of a mask, (H, W) of integers, upright, and whether they went through a JPEG."""
    upright, stored_as = stored(path, f"the mask {name}", _refuse)
    lossy = stored_as in LOSSY
    if upright.mode not in ("1", "L", "P", "I;16", "I;16B", "I;16L", "I", "LA", "RGB", "RGBA"):
        raise DataError(f"the mask {printable(name)} has the mode {upright.mode}; save its numbers as a grey picture")
    if upright.mode in ("LA", "RGBA"):
        if np.asarray(upright.getchannel("A")).min() < 255:
            raise DataError(f"the mask {name} is transparent in part; save it without transparency")
        upright = upright.convert(upright.mode[:-1])
    if upright.mode == "RGB":
        channels = np.asarray(upright)
        if not lossy and (channels != channels[..., :1]).any():
            raise DataError(f"the mask {name} is in colours; save it in grey or with a palette, a number a class")
        upright = upright.convert("L")
    return np.asarray(upright).astype(np.int64), lossy


def _refuse(image: Image.Image, name: str) -> None:
    """Raise `DataError` for a mask that would be read in part: several in one file, or colours of 16 bits."""
    frames = frames_of(image)
    if frames > 1:
        raise DataError(f"{name} holds {frames} pictures; a mask is one: save each by itself")
    bits = channel_bits(image)
    if bits > 8 and image.mode[0] not in "IF":
        raise DataError(
            f"{name} has {bits} bits a channel (mode {image.mode}), of which 8 are read; save its numbers as a grey "
            "picture"
        )


def values_in(numbers: np.ndarray) -> list[int]:
    """The values of a mask but 0, in order."""
    return [int(v) for v in np.unique(numbers) if v]


def _marks(numbers: np.ndarray, lossy: bool, name: str, reading: _Reading) -> Iterator[Mark]:
    """The objects of a mask."""
    config = reading.config
    numbers = np.where(np.isin(numbers, config.ignore), 0, numbers) if config.ignore else numbers
    if config.values is None and config.objects != "instances":
        yield from _objects(_marked(numbers, lossy, name, reading), 0, name, reading)
        return
    if lossy:
        raise DataError(f"the mask {name} is a JPEG, which changes values; save it as PNG to have them read")
    there = values_in(numbers)
    if config.values is None:
        ranks = np.searchsorted(there, numbers) + 1  # those of values, from 1 on
        yield from _parts(np.where(numbers == 0, 0, ranks), 0, name, reading)
        return
    unknown = [v for v in there if v not in config.values]
    if unknown:
        raise DataError(
            f"the mask {name} has the value {unknown[0]}, which is not in `values`; add it there, or to `ignore`"
        )
    for value in there:
        yield from _objects(numbers == value, config.values.index(value), name, reading)


def _marked(numbers: np.ndarray, lossy: bool, name: str, reading: _Reading) -> np.ndarray:
    """Which pixels a mask of one class marks: bool (H, W)."""
    threshold = reading.config.threshold or (JPEG_THRESHOLD if lossy else None)
    if threshold is not None:
        brightest = int(numbers.max())
        if lossy and BLACK <= brightest < threshold:
            raise DataError(
                f"the mask {name} is a JPEG whose brightest value is {brightest}, and {threshold} or more is marked; "
                "set a lower `threshold`, or save it as PNG if its values stand for something"
            )
        return numbers >= threshold
    for value in values_in(numbers):
        marking, first = reading.marking = reading.marking or (value, name)
        if value != marking:
            raise DataError(
                f"the masks hold more than one value beside 0: {marking} in {first} and {value} in {name}; where each "
                f"stands for a class write `values: [{marking}, {value}, ...]`, where each is an object `objects: "
                "instances`, and where they are shades of one mask the least that is marked, `threshold`"
            )
    return numbers != 0


def _objects(region: np.ndarray, label: int, name: str, reading: _Reading) -> Iterator[Mark]:
    """The connected parts of a region, or all of it, as objects with their boxes."""
    from scipy import ndimage

    if reading.config.objects == "components":
        parts, count = ndimage.label(region, np.ones((3, 3)))
        yield from _parts(parts, label, name, reading, count)
    else:
        yield from _parts(region.astype(np.int32), label, name, reading)


def _parts(parts: np.ndarray, label: int, name: str, reading: _Reading, connected: int = 0) -> Iterator[Mark]:
    """The parts of a mask by their numbers (H, W) from 1 on, 0 being the ground; `connected` of them if they are so."""
    from scipy import ndimage

    areas = np.bincount(parts.ravel())
    large = int((areas[1:] >= reading.config.smallest).sum())
    if large > MOST_OBJECTS:
        raise DataError(
            f"the mask {name} marks {large} objects, and {MOST_OBJECTS} is the most; set `smallest` to leave out "
            "specks, a `threshold`, or `objects: whole`"
        )
    for number, where in enumerate(ndimage.find_objects(parts), start=1):
        if where is None:
            continue
        rows, columns = where
        what = f"part {number} of {name}" if connected else name
        area = int(areas[number])
        if area < reading.config.smallest:
            reading.small.append(f"{what}: {area} pixels")
            continue
        size = (parts.shape[0], parts.shape[1])
        box = (float(columns.start), float(rows.start), float(columns.stop), float(rows.stop))
        runs = Runs(encode_part(parts[where] == number, (rows.start, columns.start), size), size)
        yield Mark(what, label, box, runs)
