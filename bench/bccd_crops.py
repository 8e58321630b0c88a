"""Cut the cells out of the BCCD blood smears (Pascal VOC boxes) into class folders, keeping its own splits.

    python bench/bccd_crops.py BCCD OUT

Red cells outnumber the others eleven to one: at most `MOST` cells a class and split are cut, drawn with a fixed seed.
Boxes without area are left out and counted.
"""

import random
import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path

from cones.data.pictures import open_picture

MOST = 200
MARGIN = 0.1


def main(source: Path, target: Path) -> None:
    for split in ("train", "val", "test"):
        boxes, empty = defaultdict(list), 0
        for stem in (source / f"ImageSets/Main/{split}.txt").read_text().split():
            for thing in ET.parse(source / f"Annotations/{stem}.xml").iterfind("object"):
                box = [int(thing.findtext(f"bndbox/{edge}", "0")) for edge in ("xmin", "ymin", "xmax", "ymax")]
                if box[2] <= box[0] or box[3] <= box[1]:
                    empty += 1
                    continue
                boxes[thing.findtext("name", "")].append((stem, box))
        for name, found in boxes.items():
            folder = target / split / name
            folder.mkdir(parents=True, exist_ok=True)
            random.Random(0).shuffle(found)
            for number, (stem, (left, top, right, bottom)) in enumerate(found[:MOST]):
                dx, dy = (right - left) * MARGIN, (bottom - top) * MARGIN
                image = open_picture(source / f"JPEGImages/{stem}.jpg")
                image.crop((round(left - dx), round(top - dy), round(right + dx), round(bottom + dy))).save(
                    folder / f"{stem}-{number}.png"
                )
        print(f"{split}: { {n: min(len(f), MOST) for n, f in boxes.items()} }, {empty} boxes without area left out")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
