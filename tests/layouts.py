"""Small data sets with boxes and masks, written in the layouts that people have."""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from cones.data.prepared import Object, Split
from cones.readers.coco import CocoData

SIZE = (30, 40)
SPLIT_OF = dict(zip(range(8), ["train"] * 4 + ["val"] * 2 + ["test"] * 2))


def draw_picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE[::-1], (20 * number, 100, 50)).save(path)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, *more: tuple[bytes, bytes], pixels: bytes = bytes(100), **header: int) -> bytes:
    """A PNG that says it has width x height pixels, and holds `pixels`; `more` are chunks before them, and `header` its
    `depth` and colour `kind`."""
    head = struct.pack(">IIBBBBB", width, height, header.get("depth", 8), header.get("kind", 0), 0, 0, 0)
    parts = [(b"IHDR", head), *more, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def deep_png(path: Path, channels: int, kind: int) -> None:
    """A PNG of 16 bits a channel, which Pillow does not write in colour; `kind` is its colour type."""
    rows = b"".join(b"\0" + bytes(range(4 * channels * 2)) for _ in range(4))
    path.write_bytes(png(4, 4, pixels=rows, depth=16, kind=kind))


def objects_of(target: Path, name: str) -> tuple[Object, ...]:
    """The objects of a prepared picture, in whichever split it is."""
    records = [r for s in ("train", "val", "test") for r in Split.open(target / s).records]
    return next(r.objects for r in records if r.id == name)


def coco(source: Path, change: Callable[[dict], object] = lambda table: None, **settings: Any) -> CocoData:
    """Eight pictures with a cat each, and a dog in every second, in one file; ids that start anywhere."""
    boxes = [(i, 7, [2, 3, 10, 8]) for i in range(8)] + [(i, 3, [20, 10, 12.5, 9]) for i in range(0, 8, 2)]
    table = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30, "license": 1} for i in range(8)],
        "annotations": [
            {"id": 100 + n, "image_id": i, "category_id": c, "bbox": b} for n, (i, c, b) in enumerate(boxes)
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    }
    for i in range(8):
        draw_picture(source / f"{i}.png", i)
    change(table)
    (source / "all.json").write_text(json.dumps(table))
    return CocoData(kind="coco", source=str(source), annotations="all.json", **settings)
