"""LabelMe's JSON: its shapes as objects, where its pictures are, and what is refused by name."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from layouts import draw_picture, objects_of

from cones.cli.recognise import look_at
from cones.common.errors import DataError
from cones.common.files import read_json, write_json
from cones.data.masks import object_mask
from cones.readers.labelme import LabelMeData
from cones.readers.prepare import prepare

SIZE = (30, 40)
SHAPES: dict[str, dict[str, Any]] = {
    "polygon": {"label": "cat", "points": [[2, 3], [12, 3], [12, 9], [2, 9]], "shape_type": "polygon", "flags": {}},
    "rectangle": {"label": "dog", "points": [[31, 25], [20, 10]], "shape_type": "rectangle", "group_id": None},
    "circle": {"label": "dog", "points": [[20, 15], [26, 15]], "shape_type": "circle"},
}


def labelled(source: Path, shapes: list[dict], picture: str = "{i}.png", table: str = "{i}.json") -> LabelMeData:
    """Eight pictures as LabelMe leaves them, all with the same shapes."""
    for i in range(8):
        split = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
        here, json = (source / name.format(i=i, s=split[i]) for name in (picture, table))
        draw_picture(here, i)
        path = Path("../" * (len(json.relative_to(source).parts) - 1)) / here.relative_to(source)
        content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": str(path).replace("/", "\\")}
        write_json(json, {**content, "imageData": "iVBO" * 9, "imageHeight": SIZE[0], "imageWidth": SIZE[1]})
    return LabelMeData(kind="labelme", source=str(source))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("picture", "table", "has_splits"),
    [
        ("{i}.png", "{i}.json", False),
        ("images/{i}.png", "json/{i}.json", False),
        ("{s}/{i}.png", "{s}/{i}.json", True),
    ],
)
def test_labelme_is_known_and_is_no_subject(here: Path, picture: str, table: str, has_splits: bool) -> None:
    labelled(Path("pets"), [SHAPES["polygon"], SHAPES["rectangle"]], picture, table)
    found = look_at(Path("pets"))
    assert (found.entry, found.counts) == ({"kind": "labelme", "source": "pets"}, {"cat": 8, "dog": 8})
    assert (found.has_masks, found.has_splits) == (False, has_splits)
    report = prepare(LabelMeData(**found.entry), Path("out"))
    assert (report["objects"]["kept"], report["objects"]["without_mask"]) == (16, 8)
    cat, dog = objects_of(Path("out"), picture.format(i=0, s="train"))
    assert (cat.label, cat.box, dog.label, dog.box) == (0, (2, 3, 12, 9), 1, (20, 10, 31, 25))
    assert object_mask(cat, SIZE)[3:9, 2:12].all()


def test_a_split_may_lack_a_folder_that_another_has(here: Path) -> None:
    labelled(Path("pets"), [SHAPES["polygon"]], "{s}/pngs/{i}.png", "{s}/json/{i}.json")
    for i in (6, 7):
        Path(f"pets/test/json/{i}.json").unlink()
    Path("pets/test/json").rmdir()
    found = look_at(Path("pets"))
    assert (found.entry, found.counts) == ({"kind": "labelme", "source": "pets"}, {"cat": 6})


def test_a_task_chooses_what_a_labelled_folder_is_for(here: Path) -> None:
    labelled(Path("pets"), [SHAPES["polygon"]])
    assert look_at(Path("pets")).has_masks
    assert look_at(Path("pets"), "generation").entry == {"kind": "subject", "source": "pets"}
    with pytest.raises(DataError, match="pets has no class folders and no list of classes, which classification needs"):
        look_at(Path("pets"), "classification")
    with pytest.raises(DataError, match=r"0.json is LabelMe's JSON of one picture; give the folder of all of them"):
        look_at(Path("pets/0.json"))
    labelled(Path("both"), [SHAPES["polygon"]], "{s}s/{i}.png", "{s}s/{i}.json")
    with pytest.raises(DataError, match="both can be read in two ways: class folders of whole pictures, and marks"):
        look_at(Path("both"))


def test_a_circle_is_round_and_a_group_is_one_object(here: Path) -> None:
    other = {**SHAPES["polygon"], "points": [[30, 20], [36, 20], [36, 28]], "group_id": 4}
    config = labelled(Path("pets"), [SHAPES["circle"], other, {**SHAPES["polygon"], "group_id": 4}])
    prepare(config, Path("out"))
    circle, group = objects_of(Path("out"), "0.png")
    assert circle.box == pytest.approx((14, 9, 26, 21), abs=0.3)
    assert object_mask(circle, SIZE).sum() == pytest.approx(math.pi * 36, rel=0.08)
    assert group.box == (2, 3, 36, 28)
    mask = object_mask(group, SIZE)
    assert mask[3:9, 2:12].all()
    assert mask[22, 34]
    assert not mask[15, 20]


def test_pictures_without_a_json_are_counted(here: Path) -> None:
    config = labelled(Path("pets"), [SHAPES["polygon"]])
    Path("pets/3.json").unlink()
    assert prepare(config, Path("out"))["not_listed"] == ["3.png"]
    write_json(Path("pets/2.json"), {**read_json(Path("pets/2.json")), "shapes": []})
    assert prepare(config, Path("out"))["objects"]["pictures_without_objects"] == 1


def changed(**settings: Any) -> Callable[[dict], dict]:
    return lambda table: {**table, **settings}


def shape(**settings: Any) -> Callable[[dict], dict]:
    return changed(shapes=[{**SHAPES["polygon"], **settings}])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(imagePath="gone.png"), "gone.png does not exist"),
        (changed(imagePath="../../x.png"), r"`imagePath` of 3.json lies outside"),
        (changed(imagePath="2.png"), "the picture `2.png` is listed 2 times"),
        (changed(imageHeight=31), "3.png has 40 x 30 pixels.* and its annotation is for 40 x 31"),
        (changed(shapes=None), r"3.json is not LabelMe's JSON, .*: shapes: Input should be"),
        (shape(shape_type="line"), r"shape 1 \(cat\) of 3.json is a `line`; objects are read from polygon, rectangle"),
        (shape(points=[[1, 2], [3, 4]]), r"shape 1 \(cat\) of 3.json is a polygon of 2 points; it takes three"),
        (shape(shape_type="circle"), r"is a circle of 4 points; it takes 2"),
        (shape(points=[[1, 2], [3, float("nan")], [3, 4]]), r"shapes.0.points.1.1: Input should be a finite number"),
        (shape(points=[[1, 2], [3, 9e9], [3, 4]]), r"3.png shape 1 \(cat\): a polygon has a point"),
        (shape(shape_type="circle", points=[[1, 2], [1e300, 2]]), r"3.png shape 1 \(cat\): a polygon has a point"),
        (shape(label=""), "shapes.0.label: String should have at least 1 character"),
    ],
)
def test_what_is_not_labelmes_is_refused_by_name(here: Path, change: Callable[[dict], dict], message: str) -> None:
    config = labelled(Path("pets"), [SHAPES["polygon"]])
    write_json(Path("pets/3.json"), change(read_json(Path("pets/3.json"))))
    with pytest.raises(DataError, match=message):
        prepare(config, Path("out"))


def test_a_class_that_is_not_wanted_is_named(here: Path) -> None:
    config = labelled(Path("pets"), [SHAPES["polygon"]]).model_copy(update={"classes": ["dog"]})
    with pytest.raises(DataError, match=r"shape 1 \(cat\) of 0.json is of the class `cat`, which is not in `classes`"):
        prepare(config, Path("out"))
