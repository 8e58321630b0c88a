"""A folder of a few pictures of one subject, as cameras and programs leave them, with or without masks."""

import hashlib
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from cones.config import SubjectData
from cones.data.pictures import SUFFIXES, open_masked, open_picture
from cones.data.prepared import SPLITS, Record
from cones.errors import DataError

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
    if not source.is_dir():
        raise DataError(f"{source} is not a folder; `source` must name a folder of pictures of one subject")
    found: dict[bytes, Picture] = {}
    for path in sorted(p for p in source.iterdir() if p.is_file() and not p.name.startswith(".")):
        suffix = path.suffix.lower()
        if suffix in NOT_READ:
            raise DataError(f"{path} is a {NOT_READ[suffix]} picture, which is not read; save it as JPEG or PNG")
        if suffix not in SUFFIXES:
            report["not_pictures"].append(path.name)
            continue
        picture, mask = _opened(path, config)
        content = picture.tobytes() + str(picture.size).encode()
        first = found.setdefault(content, (path.name, picture, mask))
        if first[0] != path.name:
            report["duplicates"].append(f"{path.name} is a copy of {first[0]}")
    return list(found.values())


def _opened(path: Path, config: SubjectData) -> tuple[Image.Image, Image.Image | None]:
    """A picture on white where it is transparent, and its mask if masks are asked for."""
    picture, alpha = open_masked(path)
    mask = None
    if config.masks == "alpha":
        if alpha is None:
            raise DataError(f"{path} has no transparency to take its mask from; leave `masks` out, or give a folder")
        mask = alpha
    elif config.masks is not None:
        mask = _mask_beside(path, Path(config.masks))
        if mask.size != picture.size:
            raise DataError(f"the mask of {path} is {mask.size} pixels wide and high, the picture {picture.size}")
    if mask is not None and not np.asarray(mask).any():
        raise DataError(f"the mask of {path} is empty; mark the subject in it, or leave the picture out")
    picture.thumbnail((LONGEST, LONGEST))
    if mask is not None:
        mask = mask.resize(picture.size)
    return picture, mask


def _mask_beside(path: Path, folder: Path) -> Image.Image:
    beside = [p for p in sorted(folder.glob(f"{path.stem}.*")) if p.suffix.lower() in SUFFIXES]
    if not beside:
        raise DataError(f"{folder} has no mask for {path.name}; it must be called {path.stem}.png or the like")
    return open_picture(beside[0]).convert("L")


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
        shown = f"pictures/mask-{hashlib.sha256(content).hexdigest()[:16]}.png"
        (folder / shown).write_bytes(content)
    return Record(name, 0, sha256, file, mask=shown)


def _png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
