"""Pascal VOC's layout: an XML of boxes for each picture, and lists of the pictures of each split."""

import codecs
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers.expat import ExpatError, ParserCreate

from cones.common.errors import DataError
from cones.common.escaping import plain, printable, quoted, shortened
from cones.common.reading import read_file, read_lines
from cones.data.folders import files_in, pictures_in
from cones.data.listing import Listed, Listing, inside, refuse_repeats
from cones.data.objects import Mark, label_of, labels_of
from cones.data.settings import ObjectData
from cones.data.splits import split_names


class VocData(ObjectData):
    """A folder in Pascal VOC's layout: Annotations, JPEGImages and, if wanted, ImageSets/Main."""

    kind: Literal["voc"]

    def listing(self) -> Listing:
        return list_voc(self)


MAIN = "ImageSets/Main"
"""The folder of the lists of pictures, one a split."""
DECLARED = re.compile(rb"""^\s*<\?xml[^>]*?\sencoding\s*=\s*["']([A-Za-z][\w.:-]*)["']""")
ENCODINGS = ("ascii", "utf-8", "utf-16", "utf_16", "iso8859", "cp", "koi8", "gb", "big5", "euc", "shift_jis", "johab")
"""How the names of those begin that annotations are written in; Python knows others, which are no such thing."""
DEEPEST = 100


def list_voc(config: VocData) -> Listing:
    """The classes, sorted, and the pictures that have an XML, by the lists of ImageSets/Main where these are.

    The picture of Annotations/<id>.xml is the one of that name in JPEGImages, in whatever format. Other lists than
    train.txt, val.txt (or valid.txt and the like) and test.txt are not read, nor are VOC's masks. `DataError` for an
    XML that is missing, is not as VOC has it or declares entities. What is in the folders and in no list is reported
    as `not_listed`.
    """
    source = Path(config.source)
    for name in ("Annotations", "JPEGImages"):
        if not os.path.isdir(source / name):
            raise DataError(f"{source} has no folder {name}; VOC's layout is Annotations/*.xml and JPEGImages/*.jpg")
    pictures = _pictures(source / "JPEGImages")
    annotations = {path.stem: path for path in files_in(source / "Annotations", ".xml")}
    lists = split_names((p.stem for p in files_in(source / MAIN, ".txt")), f"{source / MAIN}")
    splits = {s: _names(source / MAIN / f"{name}.txt") for s, name in lists.items()} or {"": list(annotations)}
    trees: dict[str, Element] = {}
    for split, names in splits.items():
        for name in names:
            where = f"{MAIN}/{lists.get(split)}.txt"
            path = inside(source / "Annotations", f"{name}.xml", where)
            if not os.path.lexists(path):
                raise DataError(
                    f"{printable(str(path))} does not exist, and {where} names it; a picture of nothing has an XML too"
                )
            trees[name] = _read(path)
    classes = config.classes or sorted(
        {_text(o, "name", printable(k)) for k, tree in trees.items() for o in tree.iter("object")}
    )
    labels = labels_of(classes)
    listed = [
        Listed(
            name,
            pictures.get(name, source / f"JPEGImages/{name}.jpg"),
            -1,
            split,
            tuple(_marks(trees[name], printable(name), labels)),
            _size(trees[name], printable(name)),
        )
        for split, names in splits.items()
        for name in names
    ]
    refuse_repeats(listed, config.source)
    return Listing(classes, listed, {"not_listed": sorted({*annotations, *pictures} - set(trees))}, tuple(lists))


def _pictures(folder: Path) -> dict[str, Path]:
    """The pictures of a folder by their names without the suffix."""
    found: dict[str, Path] = {}
    for path in pictures_in(folder, below=False):
        other = found.setdefault(path.stem, path)
        if other != path:
            raise DataError(f"{other} and {path.name} have one name, and one XML for both; rename one")
    return found


def _names(path: Path) -> list[str]:
    """The names of the pictures of a list."""
    return [line.strip() for line in read_lines(path) if line.strip()]


def _read(path: Path) -> Element:
    """The root of an XML. Entities are refused: annotations need none, and theirs can grow without end."""
    shown = printable(str(path))
    content = _decoded(read_file(path), shown).encode("utf-8")
    parser, builder = ParserCreate("utf-8"), TreeBuilder()  # whatever it declares itself
    depth = 0

    def refuse(name: str, *_: object) -> NoReturn:
        raise DataError(
            f"{shown} declares the entity {quoted(name)}; an annotation needs none: write what it stands for"
        )

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > DEEPEST:
            raise DataError(f"{shown} is nested more than {DEEPEST} deep, and no annotation is")
        builder.start(name, attributes)

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name)

    parser.EntityDeclHandler = parser.SkippedEntityHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
    except ExpatError as error:
        raise DataError(f"{shown} cannot be read as XML: {error}") from None
    return builder.close()


def _decoded(content: bytes, shown: str) -> str:
    """The text of an XML in the encoding that its first bytes or its first line declare; in UTF-8 without."""
    declared = DECLARED.match(content)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif content[:2] in (b"<\0", b"\0<"):
        encoding = "utf-16-le" if content[0] else "utf-16-be"
    else:
        encoding = declared[1].decode("ascii") if declared else "utf-8"
    try:
        codec = codecs.lookup(encoding).name
        if not codec.startswith(ENCODINGS):
            raise LookupError
        return content.decode("utf-8-sig" if codec == "utf-8" else codec)
    except (LookupError, UnicodeError):
        why = f"is not in {encoding}, which it declares" if declared else "is not in UTF-8, and declares no encoding"
        raise DataError(
            f"{shown} {why}, or Python does not know that encoding; save it in UTF-8, or begin it with the right one, "
            "such as <?xml version='1.0' encoding='gbk'?>"
        ) from None


def _marks(tree: Element, name: str, labels: Mapping[str, int]) -> Iterator[Mark]:
    for number, shown in enumerate(tree.iter("object"), start=1):
        where = f"object {number} of {name}.xml"
        category = _text(shown, "name", name)
        xmin, ymin, xmax, ymax = (_number(shown, f"bndbox/{k}", where) for k in ("xmin", "ymin", "xmax", "ymax"))
        # VOC counts pixels from 1 and both corners belong to the box. Corners that coincide were a click without a
        # drag rather than an object of one pixel, so such a box stays without area.
        first = 1 if xmax > xmin and ymax > ymin else 0
        difficult = (shown.findtext("difficult") or "0").strip()
        if difficult not in ("0", "1"):
            raise DataError(f"`difficult` of {where} must be 0 or 1, got {shortened(difficult)}")
        yield Mark(
            f"object {number} ({plain(category)})",
            label_of(category, labels, where),
            (xmin - first, ymin - first, xmax, ymax),
            crowd=difficult == "1",
        )


def _size(tree: Element, name: str) -> tuple[int, int] | None:
    """(height, width) as the XML tells it; None where it tells none, or 0 as some tools write."""
    if tree.find("size") is None:
        return None
    height, width = (int(_number(tree, f"size/{side}", f"{name}.xml")) for side in ("height", "width"))
    return (height, width) if height and width else None


def _text(element: Element, path: str, name: str) -> str:
    text = (element.findtext(path) or "").strip()
    if not text:
        raise DataError(f"{name}.xml has no `{path}` in one of its objects; fill it in")
    return text


def _number(element: Element, path: str, where: str) -> float:
    text = (element.findtext(path) or "").strip()
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"`{path}` of {where} must be a finite number, got {shortened(text)}")
    return number
