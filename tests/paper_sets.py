"""The eleven data sets of CoOp's benchmark, small, in its layout."""

import json
from pathlib import Path

from PIL import Image

from cones.readers.coop import KNOWN_SETS

COOP_FOLDERS = {
    "caltech-101": "Caltech101",
    "oxford_pets": "OxfordPets",
    "stanford_cars": "StanfordCars",
    "oxford_flowers": "OxfordFlowers",
    "food-101": "Food101",
    "sun397": "SUN397",
    "dtd": "DescribableTextures",
    "eurosat": "EuroSAT",
    "ucf101": "UCF101",
}
"""The folders in CoOp's $DATA of those with a split file, and what that is called by."""
CLASSES = {"ring": (200, 30, 30), "star": (30, 30, 200), "disk": (120, 0, 200), "dot": (0, 120, 0)}
PICTURES = {"train": 4, "val": 2, "test": 2}
"""Of each class."""


def write_sets(data: Path) -> Path:
    """Write all of them to a folder: four classes that colours tell apart."""
    for folder, name in COOP_FOLDERS.items():
        _write_coop(data / folder, name)
    _write_aircraft(data / "fgvc_aircraft")
    _write_imagenet(data / "imagenet")
    return data


def _write_coop(source: Path, name: str) -> None:
    lines: dict[str, list[tuple[str, int, str]]] = {split: [] for split in PICTURES}
    for split, count in PICTURES.items():
        for label, of_class in enumerate(CLASSES):
            for i in range(count):
                file = f"{of_class}/{split}-{i}.png"
                _draw(source / KNOWN_SETS[name].pictures / file, of_class, split, i)
                lines[split].append((file, label, of_class))
    (source / f"split_zhou_{name}.json").write_text(json.dumps(lines))


def _write_aircraft(source: Path) -> None:
    for split, count in PICTURES.items():
        lines = []
        for of_class in CLASSES:
            for i in range(count):
                _draw(source / f"images/{split}{of_class}{i}.jpg", of_class, split, i)
                lines.append(f"{split}{of_class}{i} {of_class}\n")
        (source / f"images_variant_{split}.txt").write_text("".join(lines))
    (source / "variants.txt").write_text("".join(f"{of_class}\n" for of_class in CLASSES))


def _write_imagenet(source: Path) -> None:
    for number, of_class in enumerate(CLASSES):
        for split, count in {"train": 8, "val": 2}.items():  # two of the training pictures will be for validation
            for i in range(count):
                _draw(source / f"images/{split}/n0000000{number}/{i}.jpg", of_class, split, i)
    (source / "classnames.txt").write_text("".join(f"n0000000{n} {name}\n" for n, name in enumerate(CLASSES)))


def _draw(path: Path, of_class: str, split: str, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    red, green, blue = CLASSES[of_class]
    colour = red, green + 40 * list(PICTURES).index(split), blue + 13 * number
    Image.new("RGB", (24, 20), colour).save(path)
