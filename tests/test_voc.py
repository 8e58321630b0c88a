"""Pascal VOC's XML: what it means, and by what words it is refused."""

from pathlib import Path
from typing import Any

import pytest
from layouts import SPLIT_OF, draw_picture, objects_of

from cones.common.errors import DataError
from cones.data.prepared import Object, Split
from cones.data.splits import draw_pictures
from cones.readers.prepare import prepare
from cones.readers.voc import VocData

BCCD = Path(__file__).parents[2] / "shared/data/bccd/BCCD"


def voc_xml(objects: list[tuple[str, tuple, str]], head: str = "", size: tuple[int, int] = (40, 30)) -> str:
    shown = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><part><name>x</name></part><bndbox>"
        + "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmax", "ymin", "xmin", "ymax"), (box[2], box[1], box[0], box[3])))
        + "</bndbox></object>"
        for name, box, difficult in objects
    )
    size_xml = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    return f"<?xml version='1.0'?>{head}<annotation><filename>not read</filename>{size_xml}{shown}</annotation>"


def voc(source: Path, lists: bool = True, **settings: Any) -> VocData:
    (source / "Annotations").mkdir(parents=True)
    (source / "ImageSets/Main").mkdir(parents=True)
    for i in range(8):
        draw_picture(source / f"JPEGImages/{i}.PNG", i)
        objects = [("cat", (1, 1, 40, 30), "0"), ("dog", (11, 6, 12, 20), "0")]
        (source / f"Annotations/{i}.xml").write_text(voc_xml(objects))
    for split in ("train", "val", "test") if lists else ():
        names = "\n".join(str(i) for i, of in SPLIT_OF.items() if of == split)
        (source / f"ImageSets/Main/{split}.txt").write_text(f"{names}\n\n")
    return VocData(kind="voc", source=str(source), **settings)


def test_voc_counts_from_one_and_has_lists(tmp_path: Path) -> None:
    config = voc(tmp_path / "s")
    for name in ("trainval.txt", "cat_train.txt"):
        (tmp_path / "s/ImageSets/Main" / name).write_text("anything at all")
    draw_picture(tmp_path / "s/JPEGImages/spare.jpg", 9)
    report = prepare(config, tmp_path / "p")
    assert report["classes"] == ["cat", "dog"]
    assert report["pictures"] == {"train": 4, "val": 2, "test": 2}
    assert report["not_listed"] == ["spare"]
    assert objects_of(tmp_path / "p", "0") == (Object(0, (0, 0, 40, 30)), Object(1, (10, 5, 12, 20)))
    assert [r.id for r in Split.open(tmp_path / "p/val").records] == ["4", "5"]


@pytest.mark.parametrize(("called", "divided"), [("test", "val"), ("valid", "test")])
def test_a_list_that_voc_lacks_is_divided_off_train(tmp_path: Path, called: str, divided: str) -> None:
    config = voc(tmp_path / "s")
    lists = tmp_path / "s/ImageSets/Main"
    (lists / "val.txt").rename(lists / "valid.txt")
    (lists / f"{'valid' if divided == 'val' else 'test'}.txt").unlink()
    report = prepare(config, tmp_path / "p")
    assert report["divided"] == [divided]
    assert report["pictures"] == {"train": 3, "val": 2, "test": 2} | {divided: 1}
    assert {r.id for r in Split.open(tmp_path / "p" / divided).records} < set("0123")


def test_voc_without_lists_is_divided_and_difficult_ones_are_crowds(tmp_path: Path) -> None:
    config = voc(tmp_path / "s", lists=False)
    shown = [("cat", (1, 1, 9, 9), "1"), ("dog", (5, 5, 5, 9), "0"), ("cat", (0, 1, 9, 9), "")]
    (tmp_path / "s/Annotations/3.xml").write_text(voc_xml(shown, size=(0, 0)))
    report = prepare(config, tmp_path / "p")
    assert report["pictures"] == {"train": 6, "val": 1, "test": 1}
    assert report["objects"]["zero_area"] == ["3 object 2 (dog): box (5, 5, 5, 9)"]
    assert report["objects"]["clipped"] == ["3 object 3 (cat): box (-1, 0, 9, 9) of 40 x 30 pixels"]
    assert report["objects"]["crowd"] == 1
    assert objects_of(tmp_path / "p", "3") == (Object(0, (0, 0, 9, 9), crowd=True), Object(0, (0, 0, 9, 9)))


BOMB = "<!DOCTYPE a [<!ENTITY big 'bigger'>]>"


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<annotation>", "0.xml cannot be read as XML"),
        (voc_xml([("&big;", (1, 1, 2, 2), "0")], BOMB), "0.xml declares the entity `big`; an annotation needs none"),
        (voc_xml([("", (1, 1, 2, 2), "0")]), "0.xml has no `name` in one of its objects; fill it in"),
        (
            voc_xml([("cat", (1, "a", 2, 2), "0")]),
            "`bndbox/ymin` of object 1 of 0.xml must be a finite number, got 'a'",
        ),
        (voc_xml([("cat", (1, 1, "nan", 2), "0")]), "`bndbox/xmax` of object 1 of 0.xml must be a finite number"),
        (voc_xml([("cat", (3, 1, 2, 2), "0")]), r"- 0 object 1 \(cat\): box \(3, 1, 2, 2\) has a negative size"),
        (voc_xml([("cat", (1, 1, 2, 2), "2")]), "`difficult` of object 1 of 0.xml must be 0 or 1, got '2'"),
        (voc_xml([("cow", (1, 1, 2, 2), "0")]), "object 1 of 0.xml is of the class `cow`, which is not in `classes`"),
        (voc_xml([], size=(30, 40)), "0 has 40 x 30 pixels, turned .* and its annotation is for 30 x 40"),
        (None, "0.xml does not exist, and ImageSets/Main/train.txt names it; a picture of nothing has an XML too"),
    ],
)
def test_a_bad_voc_annotation_is_refused(tmp_path: Path, xml: str | None, message: str) -> None:
    config = voc(tmp_path / "s", classes=["cat", "dog"])
    path = tmp_path / "s/Annotations/0.xml"
    path.unlink() if xml is None else path.write_text(xml)
    with pytest.raises(DataError, match=message):
        prepare(config, tmp_path / "p")


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("ImageSets/Main/train.txt", None, "ImageSets/Main has val, test and no `train`"),
        ("ImageSets/Main/valid.txt", "4", "ImageSets/Main has both `val` and `valid`, which are one split"),
        ("ImageSets/Main/val.txt", "", "val of .* has no picture that can be used; add some, or remove it"),
        ("ImageSets/Main/val.txt", "../../x", "`../../x.xml` in ImageSets/Main/val.txt lies outside"),
        ("ImageSets/Main/val.txt", "4\n4\n5", "the picture `4` is listed 2 times in val of"),
        ("ImageSets/Main/val.txt", "4\n5\n0", r"1 pictures stand in more than one split.*0 \(train\) is 0 \(val\)"),
        ("JPEGImages/0.PNG", None, "1 pictures of .* cannot be used:\n  - 0 does not exist"),
        ("JPEGImages/0.jpg", "", "0.PNG and 0.jpg have one name|0.jpg and 0.PNG have one name"),
    ],
)
def test_bad_voc_lists_and_pictures_are_refused(tmp_path: Path, path: str, text: str | None, message: str) -> None:
    config = voc(tmp_path / "s")
    (tmp_path / "s" / path).unlink() if text is None else (tmp_path / "s" / path).write_text(text)
    with pytest.raises(DataError, match=message):
        prepare(config, tmp_path / "p")
    with pytest.raises(DataError, match="has no folder Annotations; VOC's layout is"):
        prepare(VocData(kind="voc", source=str(tmp_path)), tmp_path / "p")


@pytest.mark.skipif(not BCCD.is_dir(), reason=f"the blood cells are not at {BCCD}")
def test_blood_cells(tmp_path: Path) -> None:
    report = prepare(VocData(kind="voc", source=str(BCCD)), tmp_path / "p")
    assert report["pictures"] == {"train": 205, "val": 87, "test": 72}
    assert report["classes"] == ["Platelets", "RBC", "WBC"]
    totals = {c: sum(of[c] for of in report["objects"]["by_class"].values()) for c in report["classes"]}
    assert totals == {"Platelets": 361, "RBC": 4153, "WBC": 372}
    assert sorted(report["objects"]["zero_area"]) == [
        "BloodImage_00338 object 13 (RBC): box (504, 337, 504, 337)",
        "BloodImage_00343 object 4 (RBC): box (181, 329, 181, 329)",
    ]
    train = Split.open(tmp_path / "p/train")
    drawn = draw_pictures(train, 5, seed=0)
    assert all(sum(label in train.records[i].labels for i in drawn) >= 5 for label in range(3))
