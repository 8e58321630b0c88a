"""A folder of a few pictures of one subject, as cameras and programs leave them, with or without masks."""

import hashlib
import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field

from cones.common.errors import DataError
from cones.common.escaping import printable
from cones.common.settings import PathName, Seed, Source
from cones.data.folders import entries, pictures_in
from cones.data.masknames import masks_beside
from cones.data.pictures import SUFFIXES, open_masked, open_picture
from cones.data.prepared import SPLITS, Record, mask_file
from cones.data.settings import DataSettings


class SubjectData(DataSettings):
    """A folder of a few pictures of one subject or in one style, of any size."""

    kind: Literal["subject"]
    source: Source
    """The folder, which DVC watches; what lies in folders below it is not read."""
    masks: PathName | None = None
    """A folder below `source`, by its path from there, with a mask for each picture, by the same name without its
    suffix: white where the subject is. The loss then counts only there. `alpha`: the pictures' own transparency. None:
    all of a picture counts."""
    val: int = Field(0, ge=0, le=100_000)
    """Pictures that a search is validated on and does not learn from; 0: it is validated on those it learns from, on
    noise that stays the same (Voronov et al. 2023)."""
    test: int = Field(1, ge=0, le=100_000)
    """Pictures kept for the test; 0: likeness is to those that were learnt from, as DreamBooth's own test has it."""
    seed: Seed = 0
    """Of what is kept back."""

    def write(self, folder: Path) -> tuple[tuple[str, ...], dict[str, list[Record]], dict]:
        refuse_masks_beside(Path(self.source))
        return copy_subject(self, folder)


FEWEST = 3
LONGEST = 2048
"""Pixels that the longer side of a kept picture has at most."""
NOT_READ = {
    ".heic": "HEIC",
    ".heif": "HEIF",
    ".avif": "AVIF",
    ".dng": "raw",
    ".cr2": "raw",
    ".nef": "raw",
    ".gif": "GIF",
}
CLASS = "subject"

Picture = tuple[str, Image.Image, Image.Image | None]
"""A name, an RGB picture and its mask."""


def refuse_masks_beside(source: Path) -> None:
    """Raise `DataError` for a folder of one subject whose pictures have masks beside them."""
    masks = masks_beside(pictures_in(source, below=False))
    if masks:
        raise DataError(
            f"{source} holds masks among its pictures, such as {next(iter(masks)).name}; move them to a folder in "
            "it, each called as its picture, and name that with `masks`"
        )


def copy_subject(config: SubjectData, folder: Path) -> tuple[tuple[str, ...], dict[str, list[Record]], dict]:
    """Copy a subject's pictures, turned upright and without transparency, into splits; classes, records and report.

    Where `val` or `test` is 0 that split shows the training pictures, and the report says so in `shared`. Raises
    `DataError` for too few pictures, and for one that cannot be read, has no mask or one of another size.
    """
    report: dict = {"not_pictures": [], "duplicates": [], "shared": []}
    pictures = _pictures(config, report)
    least = FEWEST + config.val + config.test
    if len(pictures) < least:
        raise DataError(
            f"{config.source} holds {len(pictures)} different pictures; {least} are needed: {FEWEST} to learn from, "
            f"{config.val} for validation (`val`) and {config.test} for the test (`test`)"
        )
    order = np.random.default_rng(config.seed).permutation(len(pictures)).tolist()
    rows = {
        "val": order[: config.val],
        "test": order[config.val : config.val + config.test],
        "train": sorted(order[config.val + config.test :]),
    }
    splits: dict[str, list[Record]] = {}
    for split in SPLITS:
        if not rows[split]:
            report["shared"].append(split)
        splits[split] = [_write(folder / split, pictures[i]) for i in rows[split] or rows["train"]]
    return (CLASS,), splits, report


def _pictures(config: SubjectData, report: dict) -> list[Picture]:
    source = Path(config.source)
    if not os.path.isdir(source):
        raise DataError(f"{source} is not a folder; `source` must name a folder of pictures of one subject")
    masks = {} if config.masks in (None, "alpha") else _masks(source, config.masks)
    found: dict[bytes, Picture] = {}
    for path in (p for p in entries(source, below=False) if not p.is_dir() and not p.name.startswith(".")):
        suffix = path.suffix.lower()
        if suffix in NOT_READ:
            raise DataError(
                f"{printable(str(path))} is a {NOT_READ[suffix]} picture, which is not read; save it as JPEG or PNG"
            )
        if suffix not in SUFFIXES:
            report["not_pictures"].append(path.name)
            continue
        picture, mask = _opened(path, config, masks)
        content = picture.tobytes() + str(picture.size).encode()
        first = found.setdefault(content, (path.name, picture, mask))
        if first[0] != path.name:
            report["duplicates"].append(f"{path.name} is a copy of {first[0]}")
    return list(found.values())


def _opened(path: Path, config: SubjectData, masks: Mapping[str, Path]) -> tuple[Image.Image, Image.Image | None]:
    """A picture on white where it is transparent, and its mask if masks are asked for; those of a folder by name."""
    picture, alpha = open_masked(path)
    mask = None
    if config.masks == "alpha":
        if alpha is None:
            raise DataError(f"{path} has no transparency to take its mask from; leave `masks` out, or give a folder")
        mask = alpha
    elif config.masks is not None:
        if path.stem not in masks:
            folder = Path(config.source) / config.masks
            raise DataError(f"{folder} has no mask for {path.name}; it must be called {path.stem}.png or the like")
        mask = open_picture(masks[path.stem]).convert("L")
        if mask.size != picture.size:
            raise DataError(f"the mask of {path} is {mask.size} pixels wide and high, the picture {picture.size}")
    if mask is not None and not np.asarray(mask).any():
        raise DataError(f"the mask of {path} is empty; mark the subject in it, or leave the picture out")
    picture.thumbnail((LONGEST, LONGEST))
    if mask is not None:
        mask = mask.resize(picture.size)
    return picture, mask


def _masks(source: Path, name: str) -> dict[str, Path]:
    """The masks of a folder below `source`, by their names without the suffix."""
    folder = source / name
    if not _below(source, folder) or not os.path.isdir(folder):
        there = next((p for p in (folder, Path(name)) if os.path.isdir(p)), None)
        if there is None:
            way_out = f"there is no folder {folder}"
        elif _below(source, there):
            way_out = f"write `masks: {os.path.relpath(there, source)}`"
        else:
            way_out = f"move the masks into a folder of their own in {source}"
        raise DataError(
            f"`masks` must be a folder below {source}, which is what DVC watches, by its path from there, or `alpha`, "
            f"got `{name}`; {way_out}"
        )
    masks: dict[str, Path] = {}
    for path in pictures_in(folder, below=False):
        other = masks.setdefault(path.stem, path)
        if other != path:
            raise DataError(f"{other} and {path.name} are both masks of {path.stem}; remove one")
    return masks


def _below(source: Path, folder: Path) -> bool:
    return Path(os.path.abspath(source)) in Path(os.path.abspath(folder)).parents


def _write(folder: Path, picture: Picture) -> Record:
    """A picture as a PNG named by its content, and its mask likewise."""
    name, image, mask = picture
    content = _png(image)
    sha256 = hashlib.sha256(content).hexdigest()
    file = f"pictures/{sha256[:16]}.png"
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(content)
    shown = None
    if mask is not None:
        content = _png(mask)
        shown = mask_file(content)
        (folder / shown).write_bytes(content)
    return Record(name, 0, sha256, file, mask=shown)


def _png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
