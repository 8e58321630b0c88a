"""What decoding a small file of a picture would take, known before it is decoded."""

import re
import struct
from typing import BinaryIO

from PIL.TiffImagePlugin import TiffImageFile

MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
"""Of a JPEG, those that a length follows, and the end."""
START_OF_SCAN, END = 0xDA, 0xD9
MOST_SCANS = 100
"""Of a JPEG; a progressive one has about ten, and each may go over all pixels."""
BLOCK = 1 << 20
TILE_SIDES = (322, 323)
WHOLE_NUMBERS = (3, 4)
"""TIFF's types of the sides of a tile: the decoder takes more of them than Pillow can read."""


def scans_of(stream: BinaryIO) -> int:
    """How many scans of a JPEG would be decoded, counting to just beyond `MOST_SCANS`, as libjpeg goes through it."""
    kept, at, scans = b"", 0, 0
    while scans <= MOST_SCANS and (block := stream.read(BLOCK)):
        kept += block
        while (marker := MARKER.search(kept, at)) and marker.end() + 2 <= len(kept):
            kind, at = kept[marker.end() - 1], marker.end()
            if kind == END:
                return scans
            scans += kind == START_OF_SCAN
            at += max(2, int.from_bytes(kept[at : at + 2]))
        done = marker.start() if marker else max(at, len(kept) - 1)
        kept, at = kept[done:], max(0, done - len(kept))
    return scans


def tile_of(image: TiffImageFile, stream: BinaryIO) -> tuple[int, int]:
    """Width and height of the tiles of a TIFF, (0, 0) if it has none; `ValueError` where they cannot be known."""
    stream.seek(0)
    head = stream.read(4)
    order, big = "<" if head.startswith(b"II") else ">", 43 in head[2:]
    wholes = (*WHOLE_NUMBERS, 16) if big else WHOLE_NUMBERS
    count, entry = struct.Struct(f"{order}{'Q' if big else 'H'}"), struct.Struct(f"{order}HH{'16s' if big else '8s'}")
    stream.seek(image.tag_v2.offset or 0)
    for _ in range(count.unpack(stream.read(count.size))[0]):
        tag, kind, _ = entry.unpack(stream.read(entry.size))
        if tag in TILE_SIDES and kind not in wholes:
            raise ValueError("the size of its tiles is no whole number")
    width, height = (image.tag_v2.get(tag, 0) for tag in TILE_SIDES)
    return int(width), int(height)
