"""Pictures in folders: class folders, with or without folders of splits above them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from cones.common.errors import DataError
from cones.data.folders import RENAME, class_folders, entries, is_hidden, pictures_in, split_folders, subfolders
from cones.data.listing import Listed, Listing
from cones.data.masknames import ending_of, is_of_masks, masks_beside, pictures_and_masks
from cones.data.pictures import SUFFIXES
from cones.data.settings import PictureData


class FolderData(PictureData):
    """A folder of class folders of pictures, or of `train` and, where there are some, `val` and `test` above them."""

    kind: Literal["folder"]

    def listing(self) -> Listing:
        return without_masks(list_folder(self), Path(self.source))


def list_folder(config: FolderData) -> Listing:
    """The classes and pictures of a folder.

    Pictures of no class folder are reported as `not_listed`, and so is a folder of pictures beside those of splits;
    where a split is missing that is refused, as it may be the one. `DataError` also for what `split_folders` refuses.
    """
    source = Path(config.source)
    roots, classes = split_folders(source), class_folders(source)
    report: dict = {"not_pictures": [], "not_listed": []}
    listed = [p for split, root in roots.items() for p in _pictures(root, classes, source, split, report)]
    loose = [p for root in roots.values() for p in pictures_in(root, below=False)]
    splits = tuple(split for split in roots if split)
    beside = [p for p in subfolders(source) if p not in roots.values() and pictures_in(p)] if splits else []
    report["not_listed"] += [p.relative_to(source).as_posix() for p in [*beside, *loose]]
    listing = Listing(classes, listed, report, splits)
    if beside and listing.divided:
        raise DataError(
            f"{source} has {', '.join(p.name for p in roots.values())} and, beside them, pictures in "
            f"{', '.join(p.name for p in beside)}; call the folder of each split train, val or test, or move out what "
            f"is none: what is missing comes off train. {RENAME}"
        )
    return listing


def without_masks(listing: Listing, source: Path) -> Listing:
    """A listing without the masks in its class folders: x_mask.png beside x.png, and folders of masks beside or below
    those of the pictures. They are no pictures of the class, and are reported as `masks`."""
    roots = [root / name for root in split_folders(source).values() for name in listing.classes]
    folders = {folder for root in roots for folder in pictures_and_masks(root)[1]}
    masks = {p for p in (p.path for p in listing.pictures) if folders & set(p.parents)}
    masks |= set(masks_beside([p.path for p in listing.pictures]))
    masks |= {mask for root in roots for mask in _masks_below(root)}
    left = [p for p in listing.pictures if p.path not in masks]
    report = {**listing.report, "masks": [p.id for p in listing.pictures if p.path in masks]}
    return replace(listing, pictures=left, report=report)


def _masks_below(folder: Path) -> list[Path]:
    """The masks of a folder's own pictures in folders of masks that lie in it, each called as its picture."""
    pictures = {p.with_suffix("") for p in pictures_in(folder, below=False)}
    below = [(mask, mask.relative_to(f)) for f in subfolders(folder) if is_of_masks(f) for mask in pictures_in(f)]
    return [mask for mask, name in below if ending_of(folder / name, pictures) is not None]


def _pictures(root: Path, classes: list[str], source: Path, split: str, report: dict) -> Iterator[Listed]:
    for label, name in enumerate(classes):
        for path in entries(root / name):
            where = path.relative_to(source).as_posix()
            if path.is_dir() or is_hidden(path.relative_to(root)):
                continue
            if path.suffix.lower() not in SUFFIXES:
                report["not_pictures"].append(where)
                continue
            yield Listed(where, path, label, split)
