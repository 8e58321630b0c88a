"""ImageNet and its shifted test sets, as CoOp and its successors lay them out."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from cones.common.errors import DataError
from cones.common.escaping import quoted, shortened
from cones.common.reading import read_text
from cones.data.folders import pictures_in, subfolders
from cones.data.listing import Listed, Listing
from cones.data.settings import PictureData

NAMES = "classnames.txt"
TEMPLATE = "a photo of a {}."
"""The sentence that CoOp puts the classes of all of them into."""
SPLITS = {"train": "train", "val": "test"}
"""Its own validation pictures are what everyone tests on; ours are divided off its training pictures."""


class ShiftedSet(NamedTuple):
    """What it is called, where its pictures are, and whether it has all classes of `classnames.txt` or some."""

    title: str
    pictures: str
    whole: bool


SHIFTED_SETS = {
    "imagenetv2": ShiftedSet("ImageNetV2", "imagenetv2-matched-frequency-format-val", True),
    "imagenet_sketch": ShiftedSet("ImageNet-Sketch", "images", True),
    "imagenet_a": ShiftedSet("ImageNet-A", "imagenet-a", False),
    "imagenet_r": ShiftedSet("ImageNet-R", "imagenet-r", False),
}
"""By their kinds (CoOp's DATASETS.md)."""


class ImageNetData(PictureData):
    """ImageNet (Deng et al. 2009) in `images/train` and `images/val`, a folder a WordNet id, with CoOp's
    `classnames.txt`, whose lines are an id and what the class is called. `copy: false` leaves its pictures there."""

    kind: Literal["imagenet"]

    def listing(self) -> Listing:
        source = Path(self.source)
        names = _names(source, "ImageNet's folder with images/train, images/val")
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
            listed += _pictures(root, list(names), split)
        return Listing(list(names.values()), listed, {"templates": [TEMPLATE]}, ("train", "test"))


class ImageNetShiftData(PictureData):
    """A test set for what was learnt on ImageNet: ImageNetV2 of matched frequency (Recht et al. 2019), ImageNet-Sketch
    (Wang et al. 2019), ImageNet-A (Hendrycks et al. 2021a) or ImageNet-R (2021b), with CoOp's `classnames.txt`.

    A folder a class, called by its WordNet id, or in ImageNetV2 by its place in `classnames.txt`, from 0. ImageNet-A
    and -R have 200 of the 1,000 classes.
    """

    tests_only: ClassVar[bool] = True
    kind: Literal["imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"]

    def listing(self) -> Listing:
        source, known = Path(self.source), SHIFTED_SETS[self.kind]
        names, root = _names(source, f"the folder of {known.title} with {known.pictures}"), source / known.pictures
        if not root.is_dir():
            raise DataError(
                f"{shortened(str(source))} has no folder {known.pictures}; put the pictures of {known.title} there, a "
                "folder a class"
            )
        called = _by_number(names, source) if self.kind == "imagenetv2" else names
        there = {path.name for path in subfolders(root)}
        if strange := sorted(there - set(called)):
            raise DataError(
                f"{shortened(str(root))} has the folder {quoted(strange[0])}, which {NAMES} has no line for; take it "
                f"out, or put CoOp's whole {NAMES} there"
            )
        lacking = [folder for folder in called if folder not in there]
        if known.whole and lacking:
            raise DataError(
                f"{shortened(str(root))} has no folder {lacking[0]}, one of {len(lacking)} that {NAMES} has lines for; "
                "put the pictures of each class in a folder of its own there"
            )
        classes = {folder: name for folder, name in called.items() if folder in there}
        listed = _pictures(root, list(classes), "test")
        return Listing(list(classes.values()), listed, {"templates": [TEMPLATE]}, ("test",))


def _pictures(root: Path, folders: list[str], split: str) -> list[Listed]:
    """Those of each class, by its folder."""
    return [
        Listed(f"{folder}/{path.name}", path, label, split)
        for label, folder in enumerate(folders)
        for path in pictures_in(root / folder)
    ]


def _by_number(names: Mapping[str, str], source: Path) -> dict[str, str]:
    """What the class in each folder is called where folders are numbered, as ImageNet's classes are by their ids."""
    if list(names) != sorted(names):
        raise DataError(f"{source / NAMES} must have its ids in their order, by which the folders are numbered")
    return {str(number): name for number, name in enumerate(names.values())}


def _names(source: Path, wanted: str) -> dict[str, str]:
    """What each WordNet id of `classnames.txt` is called, those of one name told apart by their ids.

    `DataError` that says that `source` must be what is `wanted`, with that file, if it is missing.
    """
    path = source / NAMES
    if not path.is_file():
        raise DataError(
            f"{shortened(str(source))} has no {NAMES}; `source` must be {wanted} and CoOp's {NAMES} (its DATASETS.md "
            "says where that is)"
        )
    pairs = [line.strip().partition(" ")[::2] for line in read_text(path).splitlines() if line.strip()]
    for wnid, name in pairs:
        if not name:
            raise DataError(f"{path} has {quoted(wnid)} without a name; each line is an id and what it is called")
    called = [name for _, name in pairs]
    return {wnid: name if called.count(name) == 1 else f"{name} {wnid}" for wnid, name in pairs}
