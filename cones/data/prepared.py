"""Prepared data on disk: one folder a split, with its pictures and a manifest that says what each of them is."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cones.common.errors import DAMAGED, DataError
from cones.common.files import content_hash, read_json, reading, write_json
from cones.common.reading import read_file
from cones.data.pictures import open_picture

SPLITS = ("train", "val", "test")
VOLUMES = "volumes.json"
"""In the folder of a split whose pictures are slices: the grid of each volume, and how it was cut."""


@dataclass(frozen=True)
class Object:
    """One object of a picture: its class (an index), and its box as xyxy in absolute pixels of `Split.picture`.

    `mask` is text, the `counts` of COCO's compressed run-length encoding for the picture's height x width; `crowd`
    marks a region that is neither counted as an object nor punished when it is found (COCO's iscrowd, VOC's difficult);
    `lesion` is its number in its volume, the same in each slice that shows it.
    """

    label: int
    box: tuple[float, float, float, float]
    mask: str | None = None
    crowd: bool = False
    lesion: int | None = None


@dataclass(frozen=True)
class Record:
    """One picture: where it came from, what it shows (an index into the classes), and the hash of its content.

    Its pixels are in `file`, relative to the split's folder unless the picture was not copied, or, when that is empty,
    in a row of `images.npy`.
    In data for detection `label` is -1, `objects` is what the picture shows and `size` its (height, width) in pixels.
    A picture of a subject may have a `mask`, a file named by its content. Pictures with the same `group` belong
    together, such as those of a patient: a pseudonym (cones/data/identity.py), once it is written. A picture of a
    `volume` is one `slice` of it.
    """

    id: str
    label: int
    sha256: str
    file: str = ""
    objects: tuple[Object, ...] | None = None
    size: tuple[int, int] | None = None
    mask: str | None = None
    group: str | None = None
    volume: str | None = None
    slice: int | None = None

    @property
    def labels(self) -> set[int]:
        """The classes it shows, crowds aside."""
        return {self.label} if self.objects is None else {o.label for o in self.objects if not o.crowd}


@dataclass(frozen=True)
class Split:
    """The pictures of one split, opened one at a time."""

    folder: Path
    classes: tuple[str, ...]
    records: tuple[Record, ...]
    templates: tuple[str, ...] = ()
    """Sentences that the data set's authors put a class name into."""
    reading: dict[str, Any] | None = None
    """How pictures were cut from volumes, so that new volumes are cut likewise; None for pictures."""

    @staticmethod
    def open(folder: Path) -> "Split":
        manifest = folder / "manifest.json"
        if not manifest.exists():
            raise DataError(f"{folder} is not prepared; run `dvc repro` to prepare it")
        content = read_json(manifest)
        with reading(manifest):
            records = tuple(_record(r) for r in content["records"])
            known = tuple(content["classes"]), records, tuple(content["templates"]), content.get("reading")
            return Split(folder, *known)

    def picture(self, index: int) -> Image.Image:
        """The picture of a record as 8-bit RGB; `DataError` if it is not the one that was prepared."""
        record = self.records[index]
        pixels = None if record.file else np.asarray(self._images[index])
        content = self._content(record.file) if pixels is None else pixels.tobytes()
        if hashlib.sha256(content).hexdigest() != record.sha256:
            raise DataError(f"the picture {record.id} of {self.folder} is damaged; {DAMAGED}")
        return open_picture(content, record.id) if pixels is None else Image.fromarray(pixels)

    def mask(self, index: int) -> Image.Image | None:
        """Where the subject of a picture is, in 8 bits and of its size; None where that is not told.

        `DataError` if it is not the one that was prepared.
        """
        record = self.records[index]
        if record.mask is None:
            return None
        content = self._content(record.mask)
        if mask_file(content) != record.mask:
            raise DataError(f"the mask of {record.id} of {self.folder} is damaged; {DAMAGED}")
        return open_picture(content, f"the mask of {record.id}").convert("L")

    def _content(self, name: str) -> bytes:
        return read_file(self.folder / name, missing=f"{self.folder / name} is gone; {DAMAGED}")

    @cached_property
    def _images(self) -> np.ndarray:
        path = self.folder / "images.npy"
        with reading(path):
            return np.load(path, mmap_mode="r")


def write_split(
    folder: Path,
    classes: Sequence[str],
    records: Sequence[Record],
    templates: Sequence[str] = (),
    reading: Mapping[str, Any] | None = None,
) -> None:
    """Write a split's manifest beside its pictures."""
    content = {"classes": list(classes), "templates": list(templates), "records": [_content(r) for r in records]}
    if reading is not None:
        content["reading"] = dict(reading)
    write_json(folder / "manifest.json", content)


def mask_file(content: bytes) -> str:
    """The file of a mask, by its path from its split's folder: named by its content."""
    return f"pictures/mask-{hashlib.sha256(content).hexdigest()[:16]}.png"


def records_hash(records: Sequence[Record]) -> str:
    """The hash of a set of pictures with their labels, objects or masks; their order counts.

    So does which of them belong together, whatever their groups are called.
    """
    told = ([r.mask] if r.mask else map(_object, r.objects or ()) for r in records)
    pictures, groups = [(r.sha256, r.label, *more) for r, more in zip(records, told)], group_numbers(records)
    return content_hash({"pictures": pictures, "groups": groups} if groups else pictures)


def group_numbers(records: Sequence[Record]) -> list[int]:
    """The group of each record as a number, from 0 in the order in which groups come; empty where there are none."""
    numbers: dict[str | None, int] = {}
    grouped = any(record.group is not None for record in records)
    return [numbers.setdefault(record.group, len(numbers)) for record in records] if grouped else []


def _content(record: Record) -> dict:
    """A record as the manifest holds it: without the fields that its kind of data does not have."""
    content = {key: value for key, value in asdict(record).items() if value is not None}
    return content if record.objects is None else content | {"objects": [_object(o) for o in record.objects]}


def _object(shown: Object) -> dict:
    content = asdict(shown)
    if shown.lesion is None:
        del content["lesion"]
    return content


def _record(content: dict) -> Record:
    if "objects" in content:
        content["objects"] = tuple(Object(**{**o, "box": tuple(o["box"])}) for o in content["objects"])
        content["size"] = tuple(content["size"])
    return Record(**content)
