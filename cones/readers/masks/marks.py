"""How a mask is read, and what it marks:

- Lossless ones have few values. With `values` each stands for a class; with `objects: instances` each is an object;
  else there is one value beside 0 in all masks of the data set, and what has it is marked. More values are refused.
- In a JPEG, or with `threshold`, what is at least the threshold (128 in a JPEG) is marked. A JPEG that is neither black
  nor reaches it is refused, and so is one with `values` or `objects: instances`: JPEG changes values.
- A palette's numbers count and not its colours. Colours, transparency and several pictures in one file are refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from cones.common.errors import DataError
from cones.common.escaping import printable
from cones.data.listing import Listed, Listing, refuse_repeats
from cones.data.masks import Runs, encode_part
from cones.data.objects import Mark
from cones.data.pictures import channel_bits, frames_of, stored
from cones.readers.masks.pairs import Masked, pair_masks, places
from cones.readers.masks.settings import MaskData

CLASS = "object"
"""The one class where the configuration names none."""
LOSSY = {"JPEG", "MPO"}
JPEG_THRESHOLD = 128
BLACK = 32
"""A JPEG whose brightest value is below it is black."""
MOST_OBJECTS = 10_000
"""In one mask; more are noise."""


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
    splits = dict.fromkeys(split for split, *_ in places(config) if split)
    reading = _Reading(config)
    listed = [_listed(picture, reading, source) for picture in pictures]
    refuse_repeats(listed, config.source)
    return Listing(classes, listed, {"not_listed": left, "too_small": reading.small}, tuple(splits))


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
