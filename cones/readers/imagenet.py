"""ImageNet, as CoOp and its successors lay it out."""

from pathlib import Path
from typing import Literal

from cones.common.errors import DataError
from cones.common.escaping import quoted, shortened
from cones.common.reading import read_text
from cones.data.folders import pictures_in, subfolders
from cones.data.listing import Listed, Listing
from cones.data.settings import PictureData

NAMES = "classnames.txt"
TEMPLATE = "a photo of a {}."
"""The sentence that CoOp puts its classes into."""
SPLITS = {"train": "train", "val": "test"}
"""Its own validation pictures are what everyone tests on; ours are divided off its training pictures."""


class ImageNetData(PictureData):
    """ImageNet (Deng et al. 2009) in `images/train` and `images/val`, a folder a WordNet id, with CoOp's
    `classnames.txt`, whose lines are an id and what the class is called. `copy: false` leaves its pictures there."""

    kind: Literal["imagenet"]

    def listing(self) -> Listing:
        source = Path(self.source)
        names = _names(source)
        listed = []
        for folder, split in SPLITS.items():
            root = source / "images" / folder
            there = {path.name for path in subfolders(root)}
            lacking = [wnid for wnid in names if wnid not in there]
            if lacking:
                raise DataError(
                    f"{shortened(str(root))} has no folder {lacking[0]}, one of {len(lacking)} that {NAMES} names; put "
                    "the pictures of each class in a folder of its id there, or take the lines of the others out"
                )
            for label, wnid in enumerate(names):
                pictures = pictures_in(root / wnid)
                listed += [Listed(f"{wnid}/{path.name}", path, label, split) for path in pictures]
        return Listing(list(names.values()), listed, {"templates": [TEMPLATE]}, ("train", "test"))


def _names(source: Path) -> dict[str, str]:
    """What each WordNet id is called, those of one name told apart by their ids."""
    path = source / NAMES
    if not path.is_file():
        raise DataError(
            f"{shortened(str(source))} has no {NAMES}; `source` must be ImageNet's folder with images/train, "
            f"images/val and CoOp's {NAMES} (its DATASETS.md says where that is)"
        )
    pairs = [line.strip().partition(" ")[::2] for line in read_text(path).splitlines() if line.strip()]
    for wnid, name in pairs:
        if not name:
            raise DataError(f"{path} has {quoted(wnid)} without a name; each line is an id and what it is called")
    called = [name for _, name in pairs]
    return {wnid: name if called.count(name) == 1 else f"{name} {wnid}" for wnid, name in pairs}
