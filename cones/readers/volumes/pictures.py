"""Pictures as medical data: listed by the kinds that read such anyway, and nothing but their pixels kept."""

import hashlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from cones.common.errors import DataError
from cones.data.copying import list_pictures
from cones.data.listing import Listing, gather, inside
from cones.data.pictures import open_picture
from cones.data.prepared import Record
from cones.data.settings import ObjectData, Pattern
from cones.readers.masks.pairs import pair_masks, places
from cones.readers.masks.settings import MaskData
from cones.readers.voc import VocData
from cones.readers.volumes.settings import VolumeData
from cones.readers.volumes.tables import column_of

if TYPE_CHECKING:
    from cones.data.settings import Written

VOC = ("Annotations", "JPEGImages")
SAME = ("source", "val_fraction", "test_fraction", "seed", "unreadable", "duplicates")


def listed_pictures(config: VolumeData) -> Listing:
    """Pictures with Pascal VOC's boxes or with masks, and with the groups that a table tells."""
    how = config.group_by
    try:
        listing = _as_pictures(config).listing()
    except DataError as error:  # which names the settings of masks
        raise DataError(str(error).replace("`values`", "`labels`").replace(", or to `ignore`", "")) from None
    if how in (None, "patient") or isinstance(how, Pattern):
        return listing
    of_case = column_of(inside(Path(config.source), config.table, "`table`"), ("case",), how)
    return replace(listing, pictures=[replace(p, group=of_case.get(p.id, "")) for p in listing.pictures])


def write_pictures(config: VolumeData, folder: Path) -> "Written":
    """Write the pictures that are listed; see `DataSettings.write`. They are written anew, as the file of a picture may
    hold more of a person than its pixels. `DataError` for `group_by: patient`, of which pictures tell nothing."""
    if config.group_by == "patient":
        raise DataError(
            f"the pictures of {config.source} do not say whose they are; set `group_by: {{pattern: ...}}`, which finds "
            "the patient in a picture's name, or `none` where each is a patient of its own"
        )
    listing = list_pictures(config)
    found, report = gather(listing, _as_pictures(config))
    records: dict[str, list[Record]] = {}
    for split, pictures in found.items():
        (folder / split / "pictures").mkdir(parents=True)
        records[split] = [_anew(record, path, folder / split) for record, path in pictures]
    return tuple(listing.classes), records, report


def _as_pictures(config: VolumeData) -> ObjectData:
    """The entry of the kind that reads them."""
    source, same = Path(config.source), {name: getattr(config, name) for name in SAME}
    classes = None if config.labels is None else [config.labels[value] for value in sorted(config.labels)]
    if all((source / name).is_dir() for name in VOC):
        return VocData(kind="voc", classes=classes, **same)
    masks = MaskData(kind="masks", **same)
    if not list(places(masks)):
        raise DataError(
            f"{source} has neither VOC's folders Annotations and JPEGImages nor a folder images, with the masks in one "
            "called masks; rename yours, or set the `kind` masks, which takes folders of other names"
        )
    if config.labels is None:
        raise DataError(f"the masks of {source} do not say what they mark; set `labels`: {{255: nucleus}}, by values")
    of_values = {"objects": "instances"} if config.instances == "values" else {"values": sorted(config.labels)}
    several = any(len(picture.masks) > 1 for picture in pair_masks(masks)[0])
    objects = {"objects": "whole" if several else "components"} | of_values
    smallest = config.least.pixels
    return MaskData.model_validate({"kind": "masks", "classes": classes, "smallest": smallest, **same, **objects})


def _anew(record: Record, path: Path, folder: Path) -> Record:
    """Write the pixels of a picture into the folder of its split, as PNG."""
    stream = BytesIO()
    open_picture(path).save(stream, "PNG", compress_level=1)
    digest = hashlib.sha256(stream.getvalue()).hexdigest()
    file = f"pictures/{digest[:16]}.png"
    (folder / file).write_bytes(stream.getvalue())
    return replace(record, sha256=digest, file=file)
