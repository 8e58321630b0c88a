"""YOLO's text: what it means, and by what words it is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layouts import SIZE, SPLIT_OF, draw_picture, objects_of
from ruamel.yaml import YAML

from cones.common.errors import DataError
from cones.data.masks import encode_mask
from cones.data.prepared import Object
from cones.readers.prepare import prepare
from cones.readers.yolo import YoloData


def yolo(source: Path, yaml: dict | None = None, **settings: Any) -> YoloData:
    for i, split in SPLIT_OF.items():
        draw_picture(source / f"images/{split}/{i}.png", i)
        (source / f"labels/{split}").mkdir(parents=True, exist_ok=True)
        (source / f"labels/{split}/{i}.txt").write_text("0 0.5 0.5 0.25 0.2\n\n1 0.25 0.2 0.5 0.2 0.5 0.6 0.25 0.6\n")
    table = {"names": ["cat", "dog"], **{s: f"images/{s}" for s in ("train", "val", "test")}, "nc": 2}
    YAML(typ="safe").dump({**table, **(yaml or {})}, source / "data.yaml")
    return YoloData(kind="yolo", source=str(source), **settings)


def test_yolo_has_boxes_polygons_and_pictures_without_a_file(tmp_path: Path) -> None:
    config = yolo(tmp_path / "s")
    draw_picture(tmp_path / "s/images/train/none.png", 9)
    (tmp_path / "s/labels/train/classes.txt").write_text("cat\ndog")
    (tmp_path / "s/images/train/notes.md").write_text("x")
    draw_picture(tmp_path / "s/images/train/.trash/old.png", 11)
    report = prepare(config, tmp_path / "p")
    assert report["classes"] == ["cat", "dog"]
    assert report["pictures"] == {"train": 5, "val": 2, "test": 2}
    assert report["not_listed"] == ["labels/train/classes.txt"]
    assert report["not_pictures"] == ["images/train/notes.md"]
    assert report["objects"]["pictures_without_objects"] == 1
    assert report["objects"]["without_mask"] == 8
    cat, dog = objects_of(tmp_path / "p", "images/train/0.png")
    assert cat == Object(0, (15, 12, 25, 18))
    assert dog.box == (10, 6, 20, 18)
    mask = np.zeros(SIZE, bool)
    mask[6:18, 10:20] = True
    assert dog.mask == encode_mask(mask)


@pytest.mark.parametrize(
    ("yaml", "pictures"),
    [
        ({"names": {1: "dog", 0: "cat"}}, {"train": 4, "val": 2, "test": 2}),
        ({"path": "images", "train": "train", "val": ["val"], "test": "test"}, {"train": 4, "val": 2, "test": 2}),
        ({"train": ["../images/train", "../images/val"], "val": "../images/test", "test": "lists/test.txt"},
         {"train": 6, "val": 2, "test": 2}),
        ({"train": "images", "val": None, "test": ""}, {"train": 4, "val": 2, "test": 2}),
        ({"val": None}, {"train": 3, "val": 1, "test": 2}),
        ({"val": None, "validation": "images/val", "test": None}, {"train": 3, "val": 2, "test": 1}),
    ],
)  # fmt: skip
def test_yolo_splits_may_be_folders_and_lists(tmp_path: Path, yaml: dict, pictures: dict) -> None:
    config = yolo(tmp_path / "s", yaml)
    (tmp_path / "s/lists").mkdir()
    (tmp_path / "s/lists/test.txt").write_text(f"../more/8.png\n\n{tmp_path}/s/more/9.png\n")
    for i in (8, 9):  # no folder is called images: the labels lie beside
        draw_picture(tmp_path / f"s/more/{i}.png", i)
        (tmp_path / f"s/more/{i}.txt").write_text("0 0.5 0.5 0.1 0.1\n1 0.5 0.5 0.1 0.1")
    report = prepare(config, tmp_path / "p")
    assert report["pictures"] == pictures
    assert report["classes"] == ["cat", "dog"]
    assert report["objects"]["kept"] == 2 * sum(pictures.values())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", "line 2 of labels/train/0.txt has the class 2, and the YAML names 0 cat, 1 dog"),
        ("0.5 0.5 0.5 0.1 0.1", "has the class 0.5"),
        ("cat 0.5 0.5 0.1 0.1", "line 2 of labels/train/0.txt must hold numbers only, got 'cat 0.5 0.5 0.1 0.1'"),
        ("0 0.5 0.5 0.1 0.1 0.9", "line 2 of labels/train/0.txt has 5 numbers after the class; a box takes 4"),
        ("0 0.5", "has 1 numbers after the class"),
        ("0 20 15 10 10", "line 2 of .* has 20; YOLO's numbers are shares of the picture's sides, from 0 to 1"),
        ("0 0.5 0.5 -0.1 0.1", r"images/train/0.png line 2 \(cat\): box .* has a negative size"),
        ("0 0.5 nan 0.1 0.1", r"images/train/0.png line 2 \(cat\): box .* is not finite"),
        ("\xff", "cannot be read as text in UTF-8"),
    ],
)
def test_a_bad_yolo_line_is_refused(tmp_path: Path, line: str, message: str) -> None:
    config = yolo(tmp_path / "s")
    (tmp_path / "s/labels/train/0.txt").write_text(f"0 0.5 0.5 0.1 0.1\n{line}", encoding="latin-1")
    with pytest.raises(DataError, match=message):
        prepare(config, tmp_path / "p")


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ({"names": 3}, "is not YOLO's YAML of names, train, val and test: names"),
        ({"names": ["cat", "cat"]}, "names the class `cat` twice"),
        ({"train": None}, "data.yaml has val, test and no `train`"),
        (dict.fromkeys(("train", "val", "test")), "data.yaml names no pictures; give `train`"),
        ({"valid": "images/val"}, "data.yaml has both `val` and `valid`"),
        (
            {"train": "images/gone"},
            "images/gone, which `train` of data.yaml names, is neither a folder nor a .txt list",
        ),
        ({"train": "../elsewhere"}, "elsewhere, which `train` of data.yaml names, is neither"),
        ({"train": "../../elsewhere"}, "elsewhere` in `train` of data.yaml lies outside"),
        ({"path": "datasets/cats"}, "`path` of .*data.yaml leads to .*datasets/cats, which is no folder"),
        ({"train": ["images/train", "images"]}, "the picture `images/train/0.png` is listed 2 times in train"),
    ],
)
def test_a_bad_yolo_table_is_refused(tmp_path: Path, yaml: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare(yolo(tmp_path / "s", yaml), tmp_path / "p")
