"""Which files are the masks of a picture, by their names and folders."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cones.common.errors import DataError
from cones.data.folders import pictures_in, split_folders, subfolders
from cones.data.listing import inside
from cones.readers.masks.settings import MaskData


@dataclass(frozen=True)
class Masked:
    """A picture with the files of its masks."""

    name: str
    path: Path
    split: str
    masks: list[Path]


def pair_masks(config: MaskData) -> tuple[list[Masked], list[str]]:
    """The pictures with their masks, and the names of pictures and masks left over; nothing is opened."""
    source = Path(config.source)
    pictures: list[Masked] = []
    for split, folder, masks, alone in places(config):
        of_picture = _pairs(folder, masks, alone, config)
        pictures += [Masked(p.relative_to(source).as_posix(), p, split, files) for p, files in of_picture.items()]
    if not pictures:
        raise DataError(
            f"{source} holds no pictures in `{config.pictures or '.'}`, nor in a folder of that name below it; "
            "`pictures` and `masks` name the two folders"
        )
    used = {path for picture in pictures for path in (picture.path, *picture.masks)}
    return pictures, [p.relative_to(source).as_posix() for p in pictures_in(source) if p not in used]


def places(config: MaskData) -> Iterator[tuple[str, Path, Path, bool]]:
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
