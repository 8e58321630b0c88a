"""Pictures that a data set lists, checked, divided and copied into the folders of their splits."""

import shutil
from dataclasses import replace
from pathlib import Path

from cones.data.groups import with_groups
from cones.data.listing import Listing, gather, refuse_class_names
from cones.data.pictures import SUFFIXES
from cones.data.prepared import SPLITS, Record
from cones.data.settings import PictureData

LONGEST_SUFFIX = 10


def list_pictures(config: PictureData) -> Listing:
    """The classes and pictures that a data set names, with names that can be said; see `PictureData.listing`."""
    listing = config.listing()
    refuse_class_names(listing.classes, config.source)
    return with_groups(listing, config)


def write_listed(config: PictureData, folder: Path) -> tuple[tuple[str, ...], dict[str, list[Record]], dict]:
    """Copy the pictures of a data set; see `DataSettings.write`."""
    listing = list_pictures(config)
    found, report = gather(listing, config)
    keep = copy_pictures if config.copy_ else refer_to_pictures
    return tuple(listing.classes), {s: keep(found.get(s, []), folder / s) for s in SPLITS}, report


def refer_to_pictures(pictures: list[tuple[Record, Path]], folder: Path) -> list[Record]:
    """The records of pictures that stay where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    return [replace(record, file=str(path.resolve())) for record, path in pictures]


def copy_pictures(pictures: list[tuple[Record, Path]], folder: Path) -> list[Record]:
    """Copy pictures into a split's folder under the hash of their content; the records then name the copies."""
    target = folder / "pictures"
    target.mkdir(parents=True)
    records = []
    for record, path in pictures:
        suffix = path.suffix.lower()
        plain = len(suffix) <= LONGEST_SUFFIX and suffix[1:].isascii() and suffix[1:].isalnum()
        if record.group is not None:  # then a suffix may be part of a name
            plain = suffix in SUFFIXES
        name = f"pictures/{record.sha256[:16]}{suffix if plain else ''}"
        shutil.copyfile(path, folder / name)
        records.append(replace(record, file=name))
    return records
