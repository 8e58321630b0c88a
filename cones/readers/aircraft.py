"""FGVC-Aircraft, of CoOp's benchmark, as its authors lay it out."""

from pathlib import Path
from typing import Literal

from cones.common.errors import DataError
from cones.common.escaping import quoted, shortened
from cones.common.reading import read_text
from cones.data.listing import Listed, Listing, inside
from cones.data.prepared import SPLITS
from cones.data.settings import PictureData

TEMPLATE = "a photo of a {}, a type of aircraft."
"""The sentence that CoOp puts its classes into."""


class AircraftData(PictureData):
    """FGVC-Aircraft (Maji et al. 2013): `images`, `variants.txt`, and `images_variant_train.txt` with the variant of
    each picture, likewise for `val` and `test`."""

    kind: Literal["fgvc_aircraft"]

    def listing(self) -> Listing:
        source = Path(self.source)
        classes = [line for line in _lines(source, "variants.txt") if line]
        numbers = {name: i for i, name in enumerate(classes)}
        listed = []
        for split in SPLITS:
            name = f"images_variant_{split}.txt"
            for line in filter(None, _lines(source, name)):
                picture, _, variant = line.partition(" ")
                if variant not in numbers:
                    raise DataError(f"{source / name} has the variant {quoted(variant)}, which variants.txt has not")
                path = inside(source / "images", f"{picture}.jpg", name)
                listed.append(Listed(f"{picture}.jpg", path, numbers[variant], split))
        return Listing(classes, listed, {"templates": [TEMPLATE]}, SPLITS)


def _lines(source: Path, name: str) -> list[str]:
    """The lines of a file of the data set, stripped; `DataError` that says what to put there if it is missing."""
    if not (source / name).is_file():
        raise DataError(
            f"{shortened(str(source))} has no {name}; `source` must be the folder of FGVC-Aircraft with images, "
            "variants.txt and images_variant_{train,val,test}.txt (its folder `data`)"
        )
    return [line.strip() for line in read_text(source / name).splitlines()]
