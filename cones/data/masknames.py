"""What masks and the folders of masks are called."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from cones.data.folders import pictures_in, subfolders

PICTURE_WORDS = {"image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "original", "originals"}
MASK_WORDS = {"mask", "masks", "label", "labels", "gt", "groundtruth", "truth", "annotation", "annotations"}
MASK_WORDS |= {"segmentation", "segmentations"}
"""Words in the name of a folder of pictures or of masks; digits and signs part words."""
BESIDE = re.compile(r"(?P<stem>.+?)(?P<ending>[ _.-](?:mask|masks|seg|segmentation))(?:[ _-]?\d+)?", re.I)
"""What a mask beside its picture is called after it: x_mask.png, or x_mask_1.png if there are several."""
APART = re.compile(r"(?P<stem>.+?)(?P<ending>[ _.-][a-z]+)(?:[ _-]?\d+)?", re.I)
"""What one in a folder of masks may be called if it is not called as its picture."""


def ending_of(mask: Path, pictures: Collection[Path]) -> str | None:
    """What a mask in a folder of masks has after its picture's name, such as `_mask`; None for one of no picture.

    `pictures` are their paths without suffix, from where the mask's path starts.
    """
    return "" if mask.with_suffix("") in pictures else _after(mask, pictures, APART)


def masks_beside(pictures: Sequence[Path]) -> dict[Path, str]:
    """Those of some pictures that are masks of others in the same folder, each with its ending."""
    there = {p.with_suffix("") for p in pictures}
    return {p: ending for p in pictures if (ending := _after(p, there, BESIDE))}


def _after(mask: Path, pictures: Collection[Path], rule: re.Pattern[str]) -> str | None:
    match = rule.fullmatch(mask.stem)
    return match["ending"] if match and mask.with_name(match["stem"]) in pictures else None


def pictures_and_masks(folder: Path) -> tuple[list[Path], list[Path]]:
    """All folders of pictures and all folders of masks that lie in a folder; none unless there are both."""
    named = subfolders(folder)
    masks = [p for p in named if is_of_masks(p) and pictures_in(p)]
    pictures = [p for p in named if _words(p) & PICTURE_WORDS and not is_of_masks(p)]
    return (pictures, masks) if pictures and masks else ([], [])


def is_of_masks(folder: Path) -> bool:
    """Whether a folder is called as one of masks."""
    return bool(_words(folder) & MASK_WORDS)


def _words(folder: Path) -> set[str]:
    return set(re.findall("[a-z]+", folder.name.lower()))
