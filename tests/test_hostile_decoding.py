"""Small files of pictures made to take long to decode, or much memory: refused before; and their honest kin, read."""

import io
import resource
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from cones.common.errors import DataError
from cones.data.pictures import open_picture

pytestmark = pytest.mark.timeout(60)
SIDE = 1500


def progressive() -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((SIDE, SIDE)).convert("RGB").save(buffer, "JPEG", progressive=True)
    return buffer.getvalue()


def repeated(times: int, between: bytes = b"") -> bytes:
    """A progressive JPEG whose last scan stands there again."""
    whole = progressive()
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] + (between + whole[last:-2]) * times + whole[-2:]


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2) + content


BETWEEN = {
    "nothing": b"", "an end in a comment": segment(0xFE, b"\xff\xd9"), "an end in a table": segment(0xE5, b"\xff\xd9"),
    "fill bytes": b"\xff" * 9,
}  # fmt: skip


@pytest.mark.parametrize("between", BETWEEN)
def test_a_jpeg_of_many_scans_is_refused_by_their_number(between: str, tmp_path: Path) -> None:
    content = repeated(200, BETWEEN[between])
    (tmp_path / "x.jpg").write_bytes(content)
    for source in (content, tmp_path / "x.jpg"):
        with pytest.raises(DataError, match=r"x\.jpg is a JPEG of more than 100 scans, which takes long to read; save"):
            open_picture(source, "x.jpg")


HONEST = {
    "progressive": progressive(),
    "a few more": repeated(5),
    "scans in a comment": progressive()[:2] + segment(0xFE, b"\xff\xda\0\x02" * 500) + progressive()[2:],
    "a film behind it": progressive() + b"\xff\xda\0\x02" * 500,
}


@pytest.mark.parametrize("kind", HONEST)
def test_what_is_no_scan_is_not_counted(kind: str, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(HONEST[kind])
    picture = open_picture(tmp_path / "x.jpg")
    assert picture.size == (SIDE, SIDE)
    assert kind == "a few more" or picture.tobytes() == open_picture(progressive(), "x").tobytes()


def tiff(entries: list[tuple[int, int, int]], content: bytes, big: bool = False) -> bytes:
    """A TIFF by its tags, their types and values: -1 is where the content is; what is of type 17 is stored apart."""
    size, number = (20, "<HHQQ") if big else (12, "<HHII")
    end = (16 + 8 + 8 if big else 8 + 2 + 4) + size * len(entries)
    apart, lines = b"", b""
    where = end + 8 * sum(kind == 17 for _, kind, _ in entries)
    for tag, kind, value in entries:
        lines += struct.pack(number, tag, kind, 1, end + len(apart) if kind == 17 else where if value < 0 else value)
        apart += struct.pack("<q", value) * (kind == 17)
    head = b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, len(entries)) if big else b"II*\0\x08\0\0\0"
    rest = b"" if big else struct.pack("<H", len(entries))
    return head + rest + lines + bytes(8 if big else 4) + apart + content


def tiled(*sides: tuple[int, int, int], side: int = 112, compression: int = 8, big: bool = False) -> bytes:
    """A grey TIFF of 100 x 100 pixels in one tile of black."""
    content = zlib.compress(bytes(side * side))
    before = [(256, 4, 100), (257, 4, 100), (258, 4, 8), (259, 4, compression), (262, 4, 1)]
    return tiff([*before, *sides, (324, 4, -1), (325, 4, len(content))], content, big)


def sides_of(side: int, kind: int = 4) -> list[tuple[int, int, int]]:
    return [(322, kind, side), (323, kind, side)]


def long(kind: int) -> list[tuple[int, int, int]]:
    return [(322, kind, 46_320), (322, 4, 112), (323, kind, 46_320), (323, 4, 112)]


HUGE = {
    "one tile": (tiled(*sides_of(46_320)), "is a TIFF in tiles of 46320 x 46320 pixels, and 178 million are the most"),
    "packed": (tiled(*sides_of(46_320), compression=32773), "is a TIFF in tiles of 46320 x 46320"),
    "as JPEG": (tiled(*sides_of(46_320), compression=7), "is a TIFF in tiles of 46320 x 46320"),
    "wide": (tiled((322, 4, 2**24), (323, 4, 112)), "is a TIFF in tiles of 16777216 x 112"),
    "a second size": (tiled(*long(4)), "is a TIFF in tiles of 46320 x 46320"),
    "a type that Pillow skips": (tiled(*long(17)), "the size of its tiles is no whole number"),
    "only such a type": (tiled(*sides_of(46_320, 17)), "the size of its tiles is no whole number"),
    "BigTIFF": (tiled(*sides_of(46_320, 16), big=True), "is a TIFF in tiles of 46320 x 46320"),
}


@pytest.mark.parametrize("kind", HUGE)
def test_a_tiff_of_huge_tiles_takes_no_memory(kind: str, tmp_path: Path) -> None:
    content, told = HUGE[kind]
    (tmp_path / "x.tif").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for source in (content, tmp_path / "x.tif"):
        with pytest.raises(DataError, match=f"x.tif .*{told}"):
            open_picture(source, "x.tif")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_in_tiles_is_read(big: bool, tmp_path: Path) -> None:
    content = tiled(*sides_of(112), big=big)
    (tmp_path / "x.tif").write_bytes(content)
    for source in (content, tmp_path / "x.tif"):
        picture = open_picture(source, "x.tif")
        assert (picture.size, picture.getextrema()) == ((100, 100), ((0, 0),) * 3)
