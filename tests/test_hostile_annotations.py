"""Annotation files made to hang, to fill the memory or to lead elsewhere: each is refused by name, or read right."""

import codecs
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hostile import (
    FILES,
    LAUGHS,
    LAYOUTS,
    MERGED,
    NO_FILES,
    XML,
    YAML,
    all_laid_out,
    answer,
    kept,
    laid_out,
    no_file,
    plain,
    used,
)
from layouts import draw_picture
from pydantic import TypeAdapter

from cones.cli.recognise import look_at
from cones.common.errors import DataError
from cones.common.escaping import printable
from cones.data.copying import list_pictures
from cones.data.masks import Runs, mask_area, outline_mask
from cones.data.settings import PictureData
from cones.features.draw import class_names
from cones.interfaces.base import Label
from cones.readers.coco import CocoData
from cones.readers.folder import FolderData
from cones.readers.prepare import prepare
from cones.tasks.classification.settings import ClassificationConcept

pytestmark = pytest.mark.timeout(60)
EACH = [(layout, file) for layout, files in FILES.items() for file in files]
DEEP = 200_000


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, PictureData]]:
    with all_laid_out(tmp_path_factory.mktemp("sources")) as laid:
        yield laid


@pytest.mark.parametrize(
    ("layout", "file", "kind"),
    [
        *((*one, kind) for one in EACH for kind in ("folder", "pipe", "sparse", "loop")),
        *((*EACH[0], kind) for kind in NO_FILES if kind not in ("folder", "pipe", "sparse", "loop")),
    ],
)
def test_what_is_no_file_is_not_waited_for(sources: dict[str, PictureData], layout: str, file: str, kind: str) -> None:
    path = Path(sources[layout].source) / file
    with kept(path):
        told = no_file(path, kind)
        said = answer(used, sources[layout])
    if kind == "folder" and file in ("split_zhou_pets.json", "0.json", "Annotations/0.xml", "ImageSets/Main/train.txt"):
        told = ""  # a folder is no list of its kind, so that list is missing
    if file == "lists/train.txt" and kind not in ("sparse", "memory"):
        told = "has no picture that can be used" if kind == "folder" else "is neither a folder nor a .txt list"
    if (layout, kind) == ("labelme", "folder"):
        assert said[0].report["not_listed"] == ["0.png"]
        return
    assert isinstance(said, DataError)
    assert plain(said)
    assert told in str(said)


CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "zeros": bytes(1000),
    "noise": bytes(range(128, 256)) * 10,
    "deep list": b"[" * DEEP + b"]" * DEEP,
    "deep table": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep tags": b"<a>" * DEEP + b"</a>" * DEEP,
    "deep block": b"".join(b" " * i + b"-\n" for i in range(400)),
    "null": b"null",
    "number": b"1" * 5000,
    "text": b'"x"',
    "half": b'{"images": [{"id": 1, "file_',
    "quote": b'path,label\n0.png,"cat',
    "lone surrogate": b'{"names": ["\\ud800"], "train": "lists"}',
    "one line of 200 KB": b"path,label\n" + b"x" * 200_000 + b",cat",
}


@pytest.mark.parametrize("content", CONTENTS)
def test_any_content_is_refused_by_the_name_of_its_file(sources: dict[str, PictureData], content: str) -> None:
    for layout, file in EACH:
        source = sources[layout].source
        with kept(Path(source) / file):
            (Path(source) / file).write_bytes(CONTENTS[content])
            said = answer(used, sources[layout])
        if (file, content) == ("0.txt", "empty"):  # a picture of nothing
            assert said[2]["objects"]["pictures_without_objects"] == 1
            continue
        assert isinstance(said, DataError), file
        assert plain(said), file
        assert re.search(rf"{Path(file).name}|train of {source}|- lists/", str(said)), file


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_what_editors_write_is_read_or_refused_in_plain_words(sources: dict[str, PictureData], encoding: str) -> None:
    for layout, file in EACH:
        path = Path(sources[layout].source) / file
        with kept(path):
            path.write_bytes(path.read_text().encode(encoding))
            said = answer(used, sources[layout])
        if encoding == "utf-8-sig" or file.endswith(".json") or (file.endswith(".xml") and "16" in encoding):
            assert not isinstance(said, DataError), (file, said)
            assert len(said[0].pictures) == 8, file
            continue
        assert isinstance(said, DataError), file
        assert plain(said), file
        assert Path(file).name in str(said), file


NAMES = {
    "absolute": ("/etc/passwd", "lies outside"),
    "above": ("../../x.png", "lies outside"),
    "above and back": ("a/../../../x.png", "lies outside"),
    "256 bytes": ("x" * 252 + ".png", "is a name that no file has: of 255 bytes at most"),
    "5000 bytes": ("x/" * 2500 + "x.png", "is a name that no file has"),
    "zero byte": ("0.png\0.jpg", "is a name that no file has"),
    "a folder": ("sub", "is a folder"),
    "a pipe": ("pipe.png", "is a pipe"),
    "a device": ("zero.png", "is a device"),
    "nowhere": ("gone.png", "does not exist"),
    "escape": ("\x1b[2J.png", r"\x1b[2J.png"),
    "through a file": ("1.png/x.png", "cannot be read: not a directory"),
}
PUT: dict[str, Callable[[Path, str], None]] = {
    "csv": lambda source, name: _swap(source / "labels.csv", "0.png", name),
    "coop": lambda source, name: _swap(source / "split_zhou_pets.json", '"0.png"', json.dumps(name)),
    "coco": lambda source, name: _swap(source / "all.json", '"0.png"', json.dumps(name)),
    "labelme": lambda source, name: _swap(source / "0.json", '"0.png"', json.dumps(name)),
    "yolo": lambda source, name: _swap(
        source / "lists/train.txt", "../0.png", f"../{name}" if name[0] != "/" else name
    ),
}


def _swap(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new, 1))


@pytest.mark.parametrize(
    ("layout", "name"),
    [*(("csv", name) for name in NAMES), *((k, n) for k in PUT if k != "csv" for n in ("absolute", "above", "a pipe"))],
)
def test_a_name_in_an_annotation_stays_in_its_folder(tmp_path: Path, layout: str, name: str) -> None:
    source = tmp_path / "s"
    config = laid_out(source, layout)
    (source / "sub").mkdir()
    os.mkfifo(source / "pipe.png")
    (source / "zero.png").symlink_to("/dev/zero")
    PUT[layout](source, NAMES[name][0])
    said = answer(used, config)
    assert isinstance(said, DataError)
    assert plain(said)
    assert NAMES[name][1] in str(said)


def test_a_source_that_is_here_has_an_outside_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    laid_out(tmp_path / "s", "csv")
    monkeypatch.chdir(tmp_path / "s")
    draw_picture(tmp_path / "x.png", 1)
    config = LAYOUTS["csv"](Path("."))
    assert len(used(config)[0].pictures) == 8
    PUT["csv"](Path("."), "../x.png")
    assert "`../x.png` in line 2 of labels.csv lies outside ." in str(answer(used, config))


def test_a_link_in_the_folder_is_a_persons_own_and_followed(tmp_path: Path) -> None:
    config = laid_out(tmp_path / "s", "csv")
    (tmp_path / "s/0.png").rename(tmp_path / "elsewhere.png")
    (tmp_path / "s/0.png").symlink_to(tmp_path / "elsewhere.png")
    assert len(used(config)[0].pictures) == 8


SCRIPTS = {
    **dict.fromkeys(("gbk", "gb2312", "gb18030", "big5", "shift_jis", "cp932", "euc-jp", "utf-8", "utf-16"), "木"),
    **dict.fromkeys(("euc-kr", "cp949"), "고양이"),
    **dict.fromkeys(("iso-8859-1", "windows-1252"), "é"),
    "koi8-r": "кот",
}


@pytest.mark.parametrize("encoding", SCRIPTS)
def test_an_xml_in_a_declared_encoding_is_read(tmp_path: Path, encoding: str) -> None:
    config = laid_out(tmp_path, "voc")
    name = SCRIPTS[encoding]
    text = f'<?xml version="1.0" encoding="{encoding}"?>\n{XML.format(name=name)}'
    for path in (tmp_path / "Annotations").iterdir():
        path.write_bytes(text.encode(encoding))
    assert used(config)[0].classes == [name]


@pytest.mark.parametrize(
    ("head", "content", "told"),
    [
        (b"", "细胞".encode("gbk"), "0.xml is not in UTF-8, and declares no encoding"),
        (b"", "猫".encode("shift_jis"), "is not in UTF-8, and declares no encoding"),
        (b"<?xml version='1.0' encoding='utf-8'?>", "细胞".encode("gbk"), "0.xml is not in utf-8, which it declares"),
        (b"<?xml version='1.0' encoding='gbk'?>", b"\xff\xff", "0.xml is not in gbk, which it declares"),
        *((f"<?xml version='1.0' encoding='{codec}'?>".encode(), b"cat", f"is not in {codec}, which it declares")
          for codec in ("zlib", "hex", "idna", "punycode", "unicode_escape", "utf-7", "rot13", "klingon", "undefined")),
        (b"<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>", b"&x;", "0.xml declares the entity `x`; an"),
        (b"<!DOCTYPE a [<!ENTITY % x SYSTEM 'http://127.0.0.1/'> %x;]>", b"cat", "0.xml declares the entity `x`"),
        (b"<!DOCTYPE a [<!ENTITY a 'b'><!ENTITY b '&a;&a;&a;'>]>", b"&b;", "0.xml declares the entity `a`"),
        (b"<!DOCTYPE a SYSTEM 'http://127.0.0.1/a.dtd'>", b"&x;", "0.xml declares the entity `x`"),
        (b"", b"&x;", "0.xml cannot be read as XML: undefined entity"),
        (b"", b"<b>" * 200 + b"</b>" * 200, "0.xml is nested more than 100 deep, and no annotation is"),
        (b"", b"cat\0", "0.xml cannot be read as XML: not well-formed"),
        (b"", b"x" * 10**7, "has a class called 'xxxxxxxx"),
        (b"<!--" + b"x" * 10**7 + b"-->", b" ", "0.xml has no `name` in one of its objects"),
    ],
)  # fmt: skip
def test_an_xml_that_is_no_annotation_is_refused(
    sources: dict[str, PictureData], head: bytes, content: bytes, told: str
) -> None:
    path = Path(sources["voc"].source) / "Annotations/0.xml"
    before, after = XML.encode().split(b"{name}")
    with kept(path):
        path.write_bytes(head + before + content + after)
        said = answer(used, sources["voc"])
    assert isinstance(said, DataError)
    assert plain(said)
    assert told in str(said)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (LAUGHS, "cannot be used: it holds more than 500,000 keys and values, aliases written out"),
        (MERGED, "cannot be used: it holds more than 500,000 keys and values, aliases written out"),
        ("a: &a [*a]", "cannot be used: the alias `a` stands for nothing that is whole before it (line 5)"),
        ("x: " + "[" * 100 + "]" * 100, "cannot be used: it is nested deeper than 20; write it flat"),
        ("x: " + "[" * DEEP + "]" * DEEP, "cannot be used: it is nested deeper than 20; write it flat"),
        ("x: !!python/object/apply:os.system [ls]", "cannot be used: `tag:yaml.org,2002:python/object/apply:os"),
        ("x: !!python/name:os.system", "cannot be used: `tag:yaml.org,2002:python/name:os.system` is a tag"),
        ("x: !!int x", "cannot be used: `tag:yaml.org,2002:int` is a tag, and nothing here needs one; leave it out"),
        ("x: !!float x", "cannot be used: `tag:yaml.org,2002:float` is a tag"),
        ("x: !!timestamp 2000-99-99", "cannot be used: `tag:yaml.org,2002:timestamp` is a tag"),
        ("x: !!binary é", "cannot be used: `tag:yaml.org,2002:binary` is a tag"),
        ("x: 2000-99-99", "cannot be read as YAML: `2000-99-99` is no value"),
        ("x: " + "9" * 5000, "cannot be read as YAML: `99999"),
        ("? {a: b}\n: 1", "cannot be read as YAML"),
        ("names: [a]", "cannot be read as YAML"),
        ("---\nx: 1", "cannot be read as YAML"),
        ("x: " + "a" * 5 * 2**20, "has 5242964 bytes; at most 4194304 are read"),
    ],
)  # fmt: skip
def test_a_yaml_that_is_no_table_is_refused(sources: dict[str, PictureData], more: str, told: str) -> None:
    source = Path(sources["yolo"].source)
    with kept(source / "data.yaml"):
        (source / "data.yaml").write_text(f"{YAML}{more}")
        said, looked = answer(used, sources["yolo"]), answer(look_at, source)
    assert isinstance(said, DataError)
    assert plain(said)
    assert f"data.yaml {told}" in str(said)
    assert isinstance(looked, DataError)
    assert plain(looked)


def test_a_yaml_of_many_classes_and_an_alias_is_read(sources: dict[str, PictureData]) -> None:
    source = Path(sources["yolo"].source)
    names = ", ".join(f"class {i}" for i in range(2, 60_000))
    with kept(source / "data.yaml"):
        (source / "data.yaml").write_text(
            YAML.replace("dog", f"dog, {names}").replace("train: ", "train: &a ") + "more: *a\n"
        )
        assert len(list_pictures(sources["yolo"]).classes) == 60_000


SIZE = (30, 40)


@pytest.mark.parametrize(
    ("counts", "size", "told"),
    [
        ("o" * 3_000_000, SIZE, "one of its run lengths has no end"),
        ("P" * 3_000_000, SIZE, "one of its run lengths has no end"),
        ("0" * 500_000, SIZE, "do not add up to the 40 x 30 pixels"),
        ("OOOO" * 100_000, SIZE, "do not add up"),
        ("o", SIZE, "end in the middle of a number"),
        ("é", SIZE, "'é' does not occur in compressed run lengths"),
        ("\x1b", SIZE, r"'\x1b' does not occur"),
        ("", SIZE, "do not add up"),
        ([], SIZE, "do not add up"),
        ([1200, 1], SIZE, "do not add up"),
        ([-1, 1201], SIZE, "do not add up"),
        ([2**31, -(2**31) + 1200], SIZE, "do not add up"),
        ([2**64 + 1200], SIZE, "do not add up"),
        ([10**10], (100_000, 100_000), "its mask is 100000 x 100000 pixels, and its picture 40 x 30"),
        ([1200], (40, 30), "its mask is 30 x 40 pixels"),
        ([1200], (-30, -40), "its mask is -40 x -30 pixels"),
        ([1200], (10**400, 1), "its mask is 1 x 1000000"),
    ],
)  # fmt: skip
def test_run_lengths_that_are_no_mask_are_refused_in_time(counts: str | list[int], size: tuple, told: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        outline_mask(Runs(counts, size), SIZE)
    assert told in str(refused.value)
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize(
    ("outline", "told"),
    [
        ([[0, 0, 40, 30] * 100_000], "which goes to and fro over its picture without end"),
        ([[0, 0, 40, 30, 0, 30]] * 2000, "which goes to and fro"),
        ([[1, 1]], "a polygon of 2 numbers"),
        ([[1, 1, 2]], "a polygon of 3 numbers"),
        ([[1, 1, 2, 2, math.nan, 3]], "not finite"),
        ([[1, 1, 2, 2, 1e308, 3]], "further out"),
        ([[]], "a polygon of 0 numbers"),
    ],
)
def test_outlines_that_are_no_mask_are_refused(outline: list, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        outline_mask(outline, SIZE)
    assert mask_area(outline_mask([[1.0, 1.0, 9.0, 1.0, 9.0, 9.0]] * 3, SIZE)) > 0


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("path,label\n0.png,cat,dog", "line 2 of {} has 3 fields, and the first line names 2; put what holds a comma"),
        ('path,label\n0.png,"cat\n1.png,dog', "line 3 of {} cannot be read as one of a CSV: unexpected end of data"),
        ('path,label\n0.png,"cat"x', "line 2 of {} cannot be read as one of a CSV"),
        (f"path,label\n0.png,{'x' * 200_000}", "cannot be read as one of a CSV: field larger than field limit"),
        ("path,label\n0.png", "line 2 of {} has no label; fill it in"),
        ("path;label\n0.png;cat", "{} has no column `path`"),
        ("path,label,label\n0.png,cat,dog", "{} has two columns `label`"),
        ("path,label\n0.png,\x1b[2J\n1.png,dog", r"has a class called '\x1b[2J'; a class's name is one line"),
        (f"path,label\n0.png,{'x' * 300}\n1.png,dog", "has a class called 'xxx"),
        ("path,label,split\n0.png,cat,\x1b[2J\n1.png,a,train", r"must be one of train, val, test, got '\x1b[2J'"),
        ("path,label\n0.png,cat\n0.png,cat", "line 3 of labels.csv names `0.png` once more"),
    ],
)
def test_a_csv_that_is_no_table_is_refused(sources: dict[str, PictureData], lines: str, told: str) -> None:
    path = Path(sources["csv"].source) / "labels.csv"
    with kept(path):
        path.write_text(lines)
        said = answer(used, sources["csv"])
    assert isinstance(said, DataError)
    assert plain(said)
    assert told.format(path) in str(said)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("x.csv", kind) for kind in NO_FILES),
        *((name, "pipe") for name in ("x.json", "x.yaml", "split_zhou_x.json", "annotations/x.json")),
    ],
)
def test_a_folder_with_such_a_thing_in_it_can_be_looked_at(class_folders: Path, name: str, kind: str) -> None:
    (class_folders / name).parent.mkdir(exist_ok=True)
    told = no_file(class_folders / name, kind)
    said = answer(look_at, class_folders)
    assert isinstance(said, DataError)
    assert plain(said)
    if kind == "folder":  # which is one of a class, without pictures
        assert "has 3 classes, the smallest with 0 pictures" in str(said)
        return
    assert Path(name).name in str(said)
    assert told in str(said)


@pytest.mark.parametrize("name", ["cat\nrow", "\x1b[2J", "caf\udce9", "\u202etac", "\u2067tac", "\u200d"])
def test_a_class_folder_that_no_table_can_show_is_refused(class_folders: Path, tmp_path: Path, name: str) -> None:
    (class_folders / "cat").rename(class_folders / name)
    with pytest.raises(
        DataError, match=r"pictures has a class called '.*'; a class's name is one line of UTF-8"
    ) as told:
        prepare(FolderData(kind="folder", source=str(class_folders)), tmp_path / "p")
    assert plain(told.value)


HONEST = {
    "Persian": "\u0645\u06cc\u200c\u0631\u0648\u062f",
    "Hindi": "\u0930\u094d\u200d\u092f",
    "family": "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "heart": "\u2764\ufe0f",
}


@pytest.mark.parametrize("name", HONEST.values(), ids=HONEST)
def test_a_label_in_any_writing_is_one_from_the_folder_to_the_card(
    class_folders: Path, tmp_path: Path, name: str
) -> None:
    (class_folders / "cat").rename(class_folders / name)
    report = prepare(FolderData(kind="folder", source=str(class_folders)), tmp_path / "p")
    assert name in report["classes"]
    concept = ClassificationConcept(
        task="classification", backbone="b", data="d", shots=1, names={name: f"one {name}"}, templates=[f"{name} {{}}"]
    )
    assert f"one {name}" in class_names(concept, tuple(report["classes"]))
    assert TypeAdapter(Label).validate_python(name) == printable(name) == name


def test_many_categories_are_told_apart_in_time(tmp_path: Path) -> None:
    config = laid_out(tmp_path, "coco")
    table = json.loads((tmp_path / "all.json").read_text())
    table["categories"] += [{"id": f"c{i}", "name": f"class {i}"} for i in range(20_000)]
    table["annotations"] += [{"image_id": 0, "category_id": f"c{i}", "bbox": [1, 1, 2, 2]} for i in range(20_000)]
    (tmp_path / "all.json").write_text(json.dumps(table))
    assert isinstance(config, CocoData)
    assert "has no objects in" in str(answer(used, config))
    table["annotations"][0]["category_id"] = 7
    named = config.model_copy(update={"classes": [f"class {i}" for i in range(20_000)]})
    assert "is of the class `cat`, which is not in `classes`; it holds class 0, class 1" in str(answer(used, named))


def test_a_codec_of_each_encoding_is_known() -> None:
    from cones.readers.voc import ENCODINGS

    for name in ("gbk", "gb2312", "big5", "shift_jis", "cp932", "euc_jp", "latin-1", "ascii", "utf-8", "utf-16-le"):
        assert codecs.lookup(name).name.startswith(ENCODINGS)
