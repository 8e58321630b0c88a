"""COCO's JSON: what it means, and by what words it is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layouts import SIZE, SPLIT_OF, coco, draw_picture, objects_of
from PIL import Image

from cones.common.errors import DataError
from cones.common.files import read_json
from cones.data.masks import encode_mask
from cones.data.prepared import Object, Split
from cones.data.settings import PictureData
from cones.readers.coco import CocoData
from cones.readers.prepare import prepare
from cones.readers.yolo import YoloData


def test_coco_in_one_file_is_divided_by_pictures(tmp_path: Path) -> None:
    report = prepare(coco(tmp_path / "s"), tmp_path / "p")
    assert report["classes"] == ["cat", "dog"]
    assert report["pictures"] == {"train": 4, "val": 2, "test": 2}
    assert report["objects"] == {
        "kept": 12, "crowd": 0, "without_mask": 12, "pictures_without_objects": 0,
        "by_class": {"train": {"cat": 4, "dog": 2}, "val": {"cat": 2, "dog": 1}, "test": {"cat": 2, "dog": 1}},
        "zero_area": [], "outside": [], "empty_mask": [], "clipped": [],
    }  # fmt: skip
    assert objects_of(tmp_path / "p", "2.png") == (Object(0, (2, 3, 12, 11)), Object(1, (20, 10, 32.5, 19)))
    train = Split.open(tmp_path / "p/train")
    assert all(r.size == SIZE and r.label == -1 for r in train.records)
    assert train.picture(0).size == SIZE[::-1]
    assert prepare(coco(tmp_path / "s"), tmp_path / "q")["hashes"] == report["hashes"]


def test_coco_by_split_with_masks_crowds_and_pictures_of_nothing(tmp_path: Path) -> None:
    mask = np.zeros(SIZE, bool)
    mask[3:11, 2:12] = True
    square = [2, 3, 12, 3, 12, 11, 2, 11]
    # Columns 2 to 11, rows 3 to 10: 60 + 3 pixels before, runs of 8, gaps of 22.
    runs = {"counts": [63, *[8, 22] * 9, 8, 1200 - 63 - 8 * 10 - 22 * 9], "size": [30, 40]}
    segmentations = [[square], runs, {**runs, "counts": encode_mask(mask)}, [], [square]]
    config = coco(tmp_path / "s")
    whole = read_json(tmp_path / "s/all.json")
    for split in ("train", "val", "test"):
        own = [p for p in whole["images"] if SPLIT_OF[p["id"]] == split]
        of = [a for a in whole["annotations"] if SPLIT_OF[a["image_id"]] == split]
        for a, segmentation in zip(of, segmentations):
            a["segmentation"] = segmentation
        if split == "train":
            of[1]["iscrowd"] = 1
            own.append({"id": "none", "file_name": "none.png"})
        # Each split numbers its classes as it likes.
        flip = {7: 3, 3: 7} if split == "val" else {7: 7, 3: 3}
        names = [{**c, "id": flip[c["id"]]} for c in whole["categories"]]
        of = [{**a, "category_id": flip[a["category_id"]]} for a in of]
        (tmp_path / f"s/{split}.json").write_text(json.dumps({"images": own, "annotations": of, "categories": names}))
    draw_picture(tmp_path / "s/none.png", 9)
    config = config.model_copy(update={"annotations": {s: f"{s}.json" for s in ("train", "val", "test")}})
    report = prepare(config, tmp_path / "p")
    assert report["pictures"] == {"train": 5, "val": 2, "test": 2}
    counts = {k: v for k, v in report["objects"].items() if isinstance(v, int)}
    assert counts == {"kept": 11, "crowd": 1, "without_mask": 2, "pictures_without_objects": 1}
    assert objects_of(tmp_path / "p", "none.png") == ()
    for name in ("0.png", "1.png", "2.png"):
        assert objects_of(tmp_path / "p", name)[0].mask == encode_mask(mask)
    assert [o.crowd for n in ("0.png", "1.png") for o in objects_of(tmp_path / "p", n)] == [False, False, True]
    assert objects_of(tmp_path / "p", "4.png")[0].label == 0


def test_coco_by_split_may_lack_one(tmp_path: Path) -> None:
    config = coco(tmp_path / "s")
    whole = read_json(tmp_path / "s/all.json")
    for split, chosen in {"train": range(6), "test": range(6, 8)}.items():
        (tmp_path / "s" / split).mkdir()
        for i in chosen:
            (tmp_path / f"s/{i}.png").rename(tmp_path / f"s/{split}/{i}.png")
        table = {
            "images": [p for p in whole["images"] if p["id"] in chosen],
            "annotations": [a for a in whole["annotations"] if a["image_id"] in chosen],
            "categories": whole["categories"],
        }
        (tmp_path / f"s/{split}.json").write_text(json.dumps(table))
    by_split = {
        "annotations": {s: f"{s}.json" for s in ("train", "test")},
        "pictures": {"train": "train", "test": "test"},
    }
    config = CocoData.model_validate({**config.model_dump(by_alias=True), **by_split})
    report = prepare(config, tmp_path / "p")
    assert (report["pictures"], report["divided"]) == ({"train": 4, "val": 2, "test": 2}, ["val"])
    assert report["objects"]["by_class"]["val"] == {"cat": 2, "dog": 1}
    assert {r.id for r in Split.open(tmp_path / "p/test").records} == {"6.png", "7.png"}


def test_coco_pictures_may_lie_in_folders(tmp_path: Path) -> None:
    config = coco(tmp_path / "s", pictures="in")
    (tmp_path / "s/in").mkdir()
    for path in (tmp_path / "s").glob("*.png"):
        path.rename(tmp_path / "s/in" / path.name)
    assert prepare(config, tmp_path / "p")["pictures"]["train"] == 4


def add(**changes: Any) -> Callable[[dict], None]:
    return lambda t: t["annotations"].append({**t["annotations"][0], "id": 999, **changes})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("categories"), r"all.json is not a COCO file of objects.*: categories: Field required"),
        (lambda t: t["annotations"][3].pop("bbox"), r"annotations\.3\.bbox: Field required"),
        (add(image_id=77), "annotation 999 of all.json is for the picture 77, which is not among its `images`"),
        (add(category_id=1), "annotation 999 of all.json has category_id 1, which is not among its `categories`"),
        (add(bbox=[1, 2, -3, 4]), r"1 objects of .* cannot be used:\n  - 0.png annotation 999 \(cat\): "
                                  r"box \(1, 2, -2, 6\) has a negative size\nrepair or remove them"),
        (add(bbox=[1, 2, float("nan"), 4]), r"0.png annotation 999 \(cat\): box \(1, 2, nan, 6\) is not finite"),
        (add(segmentation=[[1, 2, 3, 4]]), r"0.png annotation 999 \(cat\): a polygon of 4 numbers"),
        (add(segmentation={"counts": [1], "size": [30, 40]}), r"annotation 999 \(cat\): its run lengths do not add up"),
        (lambda t: t["images"].append(t["images"][0]), "the picture of all.json with the id 0 is listed more"),
        (lambda t: t["images"].append({"id": 9, "file_name": "0.png"}), "the picture `0.png` is listed 2 times in"),
        (lambda t: t["categories"].append({"id": 3, "name": "x"}), "the category of all.json with the id 3 is listed"),
        (lambda t: t["categories"].append({"id": 4, "name": "cat"}), "lists the category `cat` under several ids"),
        (lambda t: t["categories"].append({"id": 4, "name": "cow"}), "the class `cow` has no objects in train"),
        (lambda t: t["images"].append({"id": 9, "file_name": "../x.png"}), "`../x.png` in all.json lies outside"),
        (lambda t: t["images"].append({"id": 9, "file_name": "no.png"}), "1 pictures of .*\n  - no.png does not exist"),
        (lambda t: t["images"][1].update(width=30, height=40), "1.png has 40 x 30 pixels, turned as its EXIF "
                                                               "orientation says, and its annotation is for 30 x 40"),
        (lambda t: t.update(images=[], annotations=[], categories=[]), "holds 0 classes; at least one is needed"),
    ],
)  # fmt: skip
def test_a_bad_coco_file_is_refused(tmp_path: Path, change, message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare(coco(tmp_path / "s", change), tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_a_turned_picture_is_left_out_when_asked(tmp_path: Path) -> None:
    def turn(table: dict) -> None:
        turned = Image.new("RGB", (40, 30))
        exif = turned.getexif()
        exif[0x0112] = 6
        turned.save(tmp_path / "s/9.jpg", exif=exif)
        table["images"].append({"id": 9, "file_name": "9.jpg", "width": 40, "height": 30})
        add(image_id=9)(table)

    report = prepare(coco(tmp_path / "s", turn, unreadable="skip"), tmp_path / "p")
    assert report["unreadable"] == [
        "9.jpg has 30 x 40 pixels, turned as its EXIF orientation says, and its annotation is for 40 x 30"
    ]
    assert report["objects"]["kept"] == 12


def test_classes_may_be_fixed(tmp_path: Path) -> None:
    def unused(table: dict) -> None:
        table["categories"].insert(0, {"id": 0, "name": "animals"})

    report = prepare(coco(tmp_path / "s", unused, classes=["dog", "cat"]), tmp_path / "p")
    assert report["classes"] == ["dog", "cat"]
    assert [o.label for o in objects_of(tmp_path / "p", "0.png")] == [1, 0]
    message = r"annotation 108 of all.json is of the class `dog`, which is not in `classes`; it holds cat; add it there"
    with pytest.raises(DataError, match=message):
        prepare(coco(tmp_path / "s", classes=["cat"]), tmp_path / "q")


def test_copies_and_overlap(tmp_path: Path) -> None:
    def copy(table: dict) -> None:
        draw_picture(tmp_path / "s/copy.png", 1)
        table["images"].append({"id": 9, "file_name": "copy.png"})
        table["annotations"].append({**table["annotations"][1], "image_id": 9})

    assert prepare(coco(tmp_path / "s", copy), tmp_path / "p")["duplicates"] == ["copy.png is a copy of 1.png"]
    with pytest.raises(DataError, match=r"1.png and copy.png are the same picture with different objects\nremove all"):
        prepare(coco(tmp_path / "s", lambda t: (copy(t), t["annotations"].pop())), tmp_path / "q")
    dropped = coco(tmp_path / "s", lambda t: (copy(t), t["annotations"].pop()), duplicates="drop")
    assert prepare(dropped, tmp_path / "d")["conflicting"] == [
        "1.png and copy.png are the same picture with different objects",
        "copy.png and 1.png are the same picture with different objects",
    ]
    config = coco(tmp_path / "s").model_copy(
        update={"annotations": dict.fromkeys(("train", "val", "test"), "all.json")}
    )
    with pytest.raises(DataError, match="16 pictures stand in more than one split"):
        prepare(config, tmp_path / "q")


@pytest.mark.parametrize(
    "config",
    [
        CocoData(kind="coco", source="s", annotations="../all.json"),
        CocoData(kind="coco", source="s", annotations="all.json", pictures=".."),
        YoloData(kind="yolo", source="s", table="../data.yaml"),
    ],
)
def test_nothing_leads_out_of_the_folder(tmp_path: Path, config: PictureData) -> None:
    coco(tmp_path / "s")
    with pytest.raises(DataError, match=r"lies outside .*only that folder is watched"):
        prepare(config.model_copy(update={"source": str(tmp_path / "s")}), tmp_path / "p")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CocoData(kind="coco", source="s", annotations="no.json"), "there is no file .*no.json; `annotations` names"),
        (YoloData(kind="yolo", source="s"), "there is no file .*data.yaml; `table` names YOLO's YAML"),
    ],
)
def test_a_list_that_is_not_there(tmp_path: Path, config: PictureData, message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare(config.model_copy(update={"source": str(tmp_path)}), tmp_path / "p")
