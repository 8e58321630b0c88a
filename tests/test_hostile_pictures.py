"""Pictures and masks made to run, to hang, to fill the memory or to confuse: each is refused by name, or read right."""

import contextlib
import io
import os
import re
import resource
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hostile import NO_FILES, answer, no_file
from layouts import png
from PIL import EpsImagePlugin, Image

from cones.common.errors import DataError
from cones.common.files import read_json
from cones.data.folders import pictures_in
from cones.data.masks import encode_mask, encode_part
from cones.data.pictures import MAX_PIXELS, open_masked, open_picture, opened_picture
from cones.inference import files as predicting
from cones.readers.folder import FolderData
from cones.readers.masks.marks import open_mask
from cones.readers.masks.settings import MaskData
from cones.readers.prepare import prepare
from cones.tasks.classification.infer import Prediction

pytestmark = pytest.mark.timeout(60)

DOORS: dict[str, Callable[[Path], Any]] = {
    "picture": open_picture,
    "masked": open_masked,
    "mask": lambda path: open_mask(path, path.name),
}
ROOT = Path(__file__).parent.parent
READ = {"JPEG": "RGB", "PNG": "RGB", "TIFF": "RGB", "BMP": "RGB", "WEBP": "RGB", "GIF": "P"}


def picture_bytes(kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (8, 6), **settings: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind, **settings)
    return buffer.getvalue()


def tiff(width: int, height: int) -> bytes:
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: width * height}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value & 0xFFFFFFFF) for tag, value in tags.items())
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)


def no_warnings(act: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return act()


@pytest.mark.parametrize(
    "kind", ["EPS", "PPM", "ICO", "PCX", "TGA", "SGI", "IM", "JPEG2000", "DDS", "MSP", "AVIF", "PDF"]
)
@pytest.mark.parametrize("door", DOORS)
def test_other_formats_are_not_opened_whatever_they_are_called(tmp_path: Path, kind: str, door: str) -> None:
    (tmp_path / "x.png").write_bytes(picture_bytes(kind, "1" if kind == "MSP" else "RGB"))
    with pytest.raises(DataError, match=r"x\.png cannot be read as a picture: it is no JPEG, PNG, TIFF, BMP, WebP"):
        DOORS[door](tmp_path / "x.png")


@pytest.mark.parametrize("door", [*DOORS, "bytes", "predict"])
def test_a_picture_starts_no_ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, door: str) -> None:
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    path = tmp_path / "x.png"
    path.write_bytes(picture_bytes("EPS"))
    doors = DOORS | {"bytes": lambda path: open_picture(path.read_bytes(), "x.png"), "predict": opened_picture}
    with pytest.raises(DataError, match=r"x\.png cannot be read as a picture"):
        doors[door](path)
    assert not (tmp_path / "started").exists()


def test_one_function_opens_files_of_pictures() -> None:
    files = [p for folder in ("cones", "stages", "bench", "flows") for p in (ROOT / folder).rglob("*.py")]
    assert [p.name for p in files for _ in re.findall(r"\bImage\.open\(", p.read_text())] == ["pictures.py"]


BOMBS = {
    "png-2^31": png(2**31 - 1, 2**31 - 1),
    "png-10^10": png(100_000, 100_000),
    "png-as-many-again": png(14_000, 13_000),
    "png-one-row-too-many": png(MAX_PIXELS // 1000 + 1, 1000),
    "tiff": tiff(100_000, 100_000),
    "tiff-2^32": tiff(2**32 - 1, 2**32 - 1),
    "bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "gif": b"GIF89a\xff\xff\xff\xff\0\0\0" + b",\0\0\0\0\xff\xff\xff\xff\0\x02\0;",
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("door", DOORS)
def test_a_bomb_of_pixels_is_refused_before_it_is_decoded(tmp_path: Path, bomb: str, door: str) -> None:
    (tmp_path / "x.png").write_bytes(BOMBS[bomb])
    with pytest.raises(DataError, match=r"x\.png has too many pixels: at most 178 million are read; make it smaller"):
        no_warnings(lambda: DOORS[door](tmp_path / "x.png"))


FOLDED = zlib.compress(bytes(10**8), 1)


@pytest.mark.parametrize("name", ["zTXt", "iTXt", "iCCP"])
def test_a_bomb_beside_the_pixels_is_not_unfolded(tmp_path: Path, name: str) -> None:
    folded = FOLDED
    head = {"zTXt": b"k\0\0", "iTXt": b"k\0\x01\0\0\0", "iCCP": b"k\0\0"}[name]
    (tmp_path / "x.png").write_bytes(png(10, 9, (name.encode(), head + folded)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(DataError):
        assert open_picture(tmp_path / "x.png").size == (10, 9)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


@pytest.mark.parametrize(
    ("size", "refused"),
    [
        ((1, 1), False),
        ((1, 100), False),
        ((100, 1), False),
        ((1, 101), True),
        ((1, 100_000), True),
        ((60_000, 1), True),
    ],
)
def test_strips_are_refused(tmp_path: Path, size: tuple[int, int], refused: int) -> None:
    Image.new("RGB", size).save(tmp_path / "x.png")
    if not refused:
        assert open_picture(tmp_path / "x.png").size == size
        return
    for given in (tmp_path / "x.png", Image.new("RGB", size)):
        with pytest.raises(DataError, match=rf"has {size[0]} x {size[1]} pixels; one side may be 100 times as long"):
            opened_picture(given)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_a_picture_without_pixels_is_refused(tmp_path: Path, door: str, size: tuple[int, int]) -> None:
    (tmp_path / "x.png").write_bytes(png(*size))
    with pytest.raises(DataError, match=r"x\.png (cannot be read as a picture|has 0|has 5)"):
        DOORS[door](tmp_path / "x.png")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_every_mode_of_8_bits_is_read(tmp_path: Path, mode: str) -> None:
    kind = "PNG" if mode in ("1", "L", "LA", "P", "RGB", "RGBA") else "TIFF"
    white = Image.new("RGB", (4, 4), "white").convert("L" if mode == "PA" else "RGB")
    (Image.new("LAB", (4, 4), (255, 128, 128)) if mode == "LAB" else white.convert(mode)).save(tmp_path / "x", kind)
    assert min(open_picture(tmp_path / "x").getpixel((1, 1))) >= (254 if mode == "LAB" else 255)


@pytest.mark.parametrize(("mode", "why"), [("F", "mode F"), ("I", "mode I"), ("I;16", "mode I;16")])
@pytest.mark.parametrize("door", ["picture", "masked"])
def test_deep_and_strange_modes_are_refused_by_name(tmp_path: Path, mode: str, why: str, door: str) -> None:
    Image.new(mode, (4, 4)).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=rf"x\.tif .*{why}"):
        DOORS[door](tmp_path / "x.tif")


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("left", [0, 1, 11, 25, 40, -30])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, kind: str, left: int) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).convert(READ[kind])
    buffer = io.BytesIO()
    noise.save(buffer, kind)
    (tmp_path / "x.png").write_bytes(buffer.getvalue()[:left])
    with pytest.raises(DataError, match=r"x\.png (cannot be read as a picture: .|has too many pixels)") as refused:
        open_picture(tmp_path / "x.png")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("seed", range(4))
def test_bits_that_are_flipped_give_a_picture_or_a_refusal(tmp_path: Path, kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = np.frombuffer(picture_bytes(kind, READ[kind], (30, 20)), np.uint8)
    for _ in range(25):
        content = whole.copy()
        content[rng.integers(2, len(content), 3)] = rng.integers(0, 256, 3)
        (tmp_path / "x.png").write_bytes(content.tobytes())
        told = answer(open_picture, tmp_path / "x.png")
        assert getattr(told, "mode", None) == "RGB" or str(told).startswith(f"{tmp_path}/x.png ")


@pytest.mark.parametrize("kind", READ)
def test_what_grows_behind_a_picture_is_not_read(tmp_path: Path, kind: str) -> None:
    (tmp_path / "x.png").write_bytes(picture_bytes(kind, READ[kind]) + b"%!PS-Adobe-3.0 EPSF" * 1000)
    assert open_picture(tmp_path / "x.png").size == (8, 6)


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0" + os.urandom(60), b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0", b"\xff" * 40,
     b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
     b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
     b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x05\0\xff\xff\xff\xff\x63\0\0\0\0\0\0\0"],
    ids=["noise", "65535 tags", "empty", "no exif", "orientation 99", "orientation as text", "orientation of 32 GB"],
)  # fmt: skip
def test_garbage_in_exif_turns_nothing(tmp_path: Path, exif: bytes) -> None:
    (tmp_path / "x.jpg").write_bytes(picture_bytes("JPEG", exif=exif))
    assert open_picture(tmp_path / "x.jpg").size == (8, 6)


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("door", DOORS)
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, kind: str, door: str) -> None:
    told = no_file(tmp_path / "x.png", kind)
    with pytest.raises(DataError) as refused:
        DOORS[door](tmp_path / "x.png")
    assert f"x.png {told}" in str(refused.value)


def test_skipping_counts_all_that_cannot_be_read(class_folders: Path, tmp_path: Path) -> None:
    kinds = [kind for kind in NO_FILES if kind != "folder"]
    names = [f"bad-{i:02d}.png" for i in range(len(kinds))]
    told = {name: no_file(class_folders / "cat" / name, kind) for name, kind in zip(names, kinds)}
    config = {"kind": "folder", "source": str(class_folders)}
    report = prepare(FolderData(**config, unreadable="skip"), tmp_path / "p")
    lines = dict(zip(told, report["unreadable"], strict=True))
    assert all(said in lines[name] for name, said in told.items())
    assert sum(report["pictures"].values()) == 16
    with pytest.raises(DataError, match=rf"{len(kinds)} pictures of .* cannot be used:\n  - "):
        prepare(FolderData(**config), tmp_path / "p")


@pytest.mark.parametrize("below", ["cat", "cat/deep", "."])
def test_a_folder_that_cannot_be_looked_into_is_not_passed_over(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    (class_folders / "cat/deep").mkdir()
    shut, scan = str(class_folders / below), os.scandir

    def refuse(path: str = ".") -> Any:
        if str(path) == shut:
            raise PermissionError(13, "Permission denied", shut)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=f"the folder {shut} cannot be looked into: permission denied; change its"):
        pictures_in(class_folders)
    with pytest.raises(PermissionError, match=shut):
        prepare(FolderData(kind="folder", source=str(class_folders)), tmp_path / "p")


NAMES = {
    "newline": b"a\nb.png",
    "escape": b"\x1b[2J\x1b]0;owned\x07.png",
    "latin-1": b"caf\xe9.png",
    "shift-jis": "\u732b".encode("shift_jis") + b".png",
    "255 bytes": b"x" * 251 + b".png",
    "250 bytes": "\u00e9".encode() * 123 + b".png",
    "right to left": "\u202egnp.png".encode(),
    "backslash": b"a\\b.png",
    "percent": b"%s%n{0}.png",
    "dots": b"...png.png",
    "quotes": b"a\"b'c`d.png",
    "option": b"-rf.png",
    "markup": b"[red].png",
}


NAMES_IN_JSON = {"latin-1": r"*/caf\xe9.png", "shift-jis": r"*/\x94L.png"}


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_read_prepared_predicted_and_shown(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, name: str
) -> None:
    path = class_folders / "cat" / os.fsdecode(NAMES[name])
    path.write_bytes(picture_bytes(size=(9, 9)))
    if not path.name.startswith("."):
        assert path in pictures_in(class_folders)
        report = prepare(FolderData(kind="folder", source=str(class_folders)), tmp_path / "p")
        assert sum(report["pictures"].values()) == 17
    out = predicted([path, path], tmp_path / "out", monkeypatch)
    lines = read_json(out / "predictions.json")["predictions"]
    assert lines[0]["path"] == NAMES_IN_JSON.get(name, str(path)).replace("*", str(path.parent))
    lines[0]["path"].encode("utf-8")
    assert {line["drawn"] for line in lines} == {f"pictures/{p.name}" for p in (out / "pictures").iterdir()}
    assert len({line["drawn"] for line in lines}) == 2
    path.write_bytes(b"x")
    with pytest.raises(DataError) as refused:
        open_picture(path)
    assert str(refused.value).isprintable()
    str(refused.value).encode("utf-8")


def predicted(paths: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Predictions of a Concept that says `cat` to everything."""
    base = SimpleNamespace(name="toy", sha256="0")
    card = SimpleNamespace(task="classification", concept="pets", row="r", base=base, classes=("cat", "dog"))
    says = SimpleNamespace(
        card=card,
        predict=lambda paths, threshold: [opened_picture(p) and Prediction("cat", 1.0, {"cat": 1.0}) for p in paths],
    )
    monkeypatch.setattr(predicting, "open_concept", lambda *_: says)
    predicting.predict_files("pets", paths, out)
    return out


@pytest.mark.parametrize(
    ("step", "error"), [("open_picture", DataError("it is gone")), ("write_picture", OSError(28, "No space left"))]
)
def test_what_was_predicted_stays_when_a_picture_cannot_be_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: Exception
) -> None:
    (tmp_path / "x.png").write_bytes(picture_bytes())
    monkeypatch.setattr(predicting, step, Mock(side_effect=error))
    with pytest.raises(type(error), match=r"it is gone|No space left"):
        predicted([tmp_path / "x.png"], tmp_path / "out", monkeypatch)
    assert len(read_json(tmp_path / "out/predictions.json")["predictions"]) == 1


@pytest.mark.parametrize(
    ("objects", "told"),
    [
        ("components", "the mask masks/0.png marks 22500 objects, and 10000 is the most; set `smallest` to leave out"),
        ("instances", "the mask masks/0.png marks 22500 objects, and 10000 is the most"),
    ],
)
def test_a_mask_of_noise_is_refused_in_time(tmp_path: Path, objects: str, told: str) -> None:
    numbers = np.zeros((300, 300), np.uint16)
    numbers[::2, ::2] = np.arange(1, 22501).reshape(150, 150) if objects == "instances" else 1
    for i in range(3):
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
        Image.new("RGB", (300, 300), (i, 0, 0)).save(tmp_path / f"images/{i}.png")
        Image.fromarray(numbers).save(tmp_path / f"masks/{i}.png")
    config = {"kind": "masks", "source": str(tmp_path), "objects": objects}
    with pytest.raises(DataError, match=told):
        prepare(MaskData(**config), tmp_path / "p")


@pytest.mark.parametrize("seed", range(6))
def test_a_part_of_a_mask_is_encoded_as_the_whole_is(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(1, 30)), int(rng.integers(1, 30)))
    for density in (0.0, 0.1, 0.5, 0.9, 1.0):
        top, left = int(rng.integers(0, size[0])), int(rng.integers(0, size[1]))
        part = rng.random((int(rng.integers(1, size[0] - top + 1)), int(rng.integers(1, size[1] - left + 1)))) < density
        mask = np.zeros(size, bool)
        mask[top : top + part.shape[0], left : left + part.shape[1]] = part
        assert encode_part(part, (top, left), size) == encode_mask(mask)
