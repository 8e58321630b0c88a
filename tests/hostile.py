"""What hostile tests share: a small data set of each layout, what takes a file's place, text that does harm where it is
shown, and what a refusal must be."""

import copy
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from layouts import SPLIT_OF, coco, draw_picture

import cones.data.listing
from cones.common.errors import ConesError, DataError
from cones.data.copying import list_pictures
from cones.data.listing import gather
from cones.data.settings import PictureData
from cones.readers.coop import CoOpData
from cones.readers.csv import TableData
from cones.readers.labelme import LabelMeData
from cones.readers.voc import VocData
from cones.readers.yolo import YoloData

SECRET = "s3cr3tpw"


def answer(act: Callable[..., Any], *args: Any) -> Any:
    """What a call gives, or the `DataError` by which it is refused; any other exception ends the test."""
    try:
        return act(*args)
    except DataError as error:
        return error


def said(error: ConesError, may_pass: bool = False) -> str:
    """What is said to a person: one short line that can be printed, without a password, of an error that says whether
    to try again."""
    told = str(error)
    assert error.may_pass is may_pass
    assert told.isprintable()
    assert len(told) < 600
    assert SECRET not in told
    return told


def refused(act: Callable[[], Any], told: str, may_pass: bool = False) -> str:
    """What is said by the `ConesError` that refuses a call, with `told` in it."""
    with pytest.raises(ConesError) as caught:
        act()
    assert told in said(caught.value, may_pass)
    return str(caught.value)


def used(config: PictureData) -> Any:
    """All that is read of a data set before it is copied."""
    listing = list_pictures(config)
    return listing, *gather(listing, config)


def plain(error: DataError) -> bool:
    """Whether a refusal can be shown: short, in valid UTF-8, and with no line end but those of its own list."""
    text = str(error).replace("\n  - ", " ").replace("\nrepair ", " ").replace("\nremove ", " ")
    return len(text) < 3000 and text.isprintable() and bool(text.encode("utf-8"))


XML = (
    "<annotation><size><width>40</width><height>30</height></size><object><name>{name}</name>"
    "<difficult>0</difficult><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>20</xmax><ymax>20</ymax></bndbox></object>"
    "</annotation>"
)
YAML = "names: [cat, dog]\ntrain: lists/train.txt\nval: lists/val.txt\ntest: lists/test.txt\n"


def _csv(source: Path) -> PictureData:
    lines = ["path,label,split", *(f"{i}.png,{'cat' if i % 2 else 'dog'},{s}" for i, s in SPLIT_OF.items())]
    (source / "labels.csv").write_text("\n".join(lines))
    return TableData(kind="csv", source=str(source))


def _coop(source: Path) -> PictureData:
    content: dict[str, list] = {"train": [], "val": [], "test": []}
    for i, split in SPLIT_OF.items():
        content[split].append([f"{i}.png", i % 2, ["dog", "cat"][i % 2]])
    (source / "split_zhou_pets.json").write_text(json.dumps(content))
    return CoOpData(kind="coop", source=str(source))


def _labelme(source: Path) -> PictureData:
    shapes = [{"label": "cat", "points": [[2, 3], [12, 3], [12, 9]], "shape_type": "polygon", "group_id": None}]
    shapes.append({"label": "dog", "points": [[20, 15], [26, 15]], "shape_type": "circle", "group_id": 1})
    for i in SPLIT_OF:
        content = {"shapes": shapes, "imagePath": f"{i}.png", "imageData": "iVBO", "imageHeight": 30, "imageWidth": 40}
        (source / f"{i}.json").write_text(json.dumps(content))
    return LabelMeData(kind="labelme", source=str(source))


def _voc(source: Path) -> PictureData:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (source / folder).mkdir(parents=True, exist_ok=True)
    for i in SPLIT_OF:
        (source / f"{i}.png").rename(source / f"JPEGImages/{i}.png")
        (source / f"Annotations/{i}.xml").write_text(XML.format(name="cat"))
    for split in ("train", "val", "test"):
        names = "\n".join(str(i) for i, s in SPLIT_OF.items() if s == split)
        (source / f"ImageSets/Main/{split}.txt").write_text(names)
    return VocData(kind="voc", source=str(source))


def _yolo(source: Path) -> PictureData:
    (source / "lists").mkdir()
    for i in SPLIT_OF:
        (source / f"{i}.txt").write_text("0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.5 0.1 0.5 0.6\n")
    for split in ("train", "val", "test"):
        names = "\n".join(f"../{i}.png" for i, s in SPLIT_OF.items() if s == split)
        (source / f"lists/{split}.txt").write_text(names)
    (source / "data.yaml").write_text(YAML)
    return YoloData(kind="yolo", source=str(source))


LAYOUTS: dict[str, Callable[[Path], PictureData]] = {
    "csv": _csv,
    "coop": _coop,
    "coco": lambda source: coco(source),
    "labelme": _labelme,
    "voc": _voc,
    "yolo": _yolo,
}
FILES = {
    "csv": ["labels.csv"],
    "coop": ["split_zhou_pets.json"],
    "coco": ["all.json"],
    "labelme": ["0.json"],
    "voc": ["Annotations/0.xml", "ImageSets/Main/train.txt"],
    "yolo": ["data.yaml", "lists/train.txt", "0.txt"],
}
"""The files that a layout is read from, but for pictures."""


def laid_out(source: Path, layout: str) -> PictureData:
    """Eight pictures with what marks them, in a layout."""
    for i in SPLIT_OF:
        draw_picture(source / f"{i}.png", i)
    return LAYOUTS[layout](source)


@contextmanager
def kept(path: Path) -> Iterator[None]:
    """Put a file back as it was, whatever took its place."""
    aside = path.with_name(f".{path.name}.kept")
    path.rename(aside)
    path.write_bytes(aside.read_bytes())
    try:
        yield
    finally:
        if path.is_dir():
            path.rmdir()
        aside.replace(path)


@contextmanager
def all_laid_out(folder: Path) -> Iterator[dict[str, PictureData]]:
    """A data set of each layout, whose pictures are opened once."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("open_picture", "file_hash"):
            patch.setattr(cones.data.listing, name, cache(getattr(cones.data.listing, name)))
        yield {layout: laid_out(folder / layout, layout) for layout in LAYOUTS}


def leaves(content: Any, path: tuple = ()) -> Iterator[tuple]:
    """Where the values of a table are, its own parts too; of a list its first entry stands for all."""
    yield path
    parts = (
        content.items() if isinstance(content, dict) else enumerate(content[:1]) if isinstance(content, list) else ()
    )
    for key, part in parts:
        yield from leaves(part, (*path, key))


def replaced(content: Any, path: tuple, value: Any) -> Any:
    """A copy of a table with one value replaced."""
    if not path:
        return value
    content = copy.deepcopy(content)
    here = content
    for step in path[:-1]:
        here = here[step]
    here[path[-1]] = value
    return content


def no_file(path: Path, kind: str) -> str:
    """Put something at a path that is no ordinary file; what is said of it."""
    path.unlink(missing_ok=True)
    match kind:
        case "folder":
            path.mkdir()
            return "is a folder, and a file is needed there"
        case "pipe":
            os.mkfifo(path)
            return "is a pipe, and a file is needed there; put one in its place, or take it away"
        case "socket":
            with socket.socket(socket.AF_UNIX) as server, chdir(path.parent):  # the path of one has 107 bytes at most
                server.bind(path.name)
            return "is a socket"
        case "sparse":
            path.touch()
            os.truncate(path, 2**40)
            return "has 1099511627776 bytes; at most"
        case "memory":
            path.symlink_to("/proc/self/mem")
            return "cannot be read"
        case "loop":
            path.symlink_to(path.name)
            return "cannot be read: too many levels of symbolic links"
        case "two links":
            path.symlink_to(f"{path.name}.other")
            path.with_name(f"{path.name}.other").symlink_to(path.name)
            return "cannot be read: too many levels of symbolic links"
        case "nowhere":
            path.symlink_to("/no/such\x1b[2J")
            return r"is a link to /no/such\x1b[2J, which does not exist"
    path.symlink_to(f"/dev/{kind}")
    return "is a device"


NO_FILES = (
    "folder", "pipe", "socket", "sparse", "memory", "loop", "two links", "nowhere", "zero", "null", "urandom", "full",
)  # fmt: skip

PAIRS = list(zip("abcdefgh", "bcdefghi"))
LAUGHS = "a: &a [x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in PAIRS)
"""YAML of 43 million values, by names of names; and the same by what is merged."""
MERGED = "a: &a {k: 1}\n" + "".join(f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}\n" for a, b in PAIRS)

HOSTILE = [
    '</script><script>document.title="HOLE"</script>', "<img src=x onerror=alert(1)>", '=HYPERLINK("http://x","y")',
    "+1+1", "-2+3", "@SUM(A1)", "\tx", "\rx", "\nx", "'quoted", "''twice", "-0.5", "a,b;c", 'say "no"', "&lt;b&gt;",
    "\x1b[31mred\x1b[0m", "[red]x[/red]", "[/]", ":warning:", "\u202eevil", "<!--", "<DVC_METRIC_DATA>", "`x`|y", "",
    "\udcff", "\x00", "a\u2028b", "x" * 5000,
]  # fmt: skip
"""Text that somebody may call a class, a file or a row to do harm where it is shown."""
