"""Data with boxes and masks: what each layout means, and which objects are kept, listed or refused, by what words."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from cones.config import CocoData, FolderData, PictureData, SceneData, VocData, YoloData, load_params
from cones.data import Object, Record, Split, draw_pictures, object_mask, prepare, records_hash
from cones.data.masks import Runs, encode_mask, mask_area, outline_mask
from cones.data.objects import Findings, Mark, settle
from cones.data.prepared import write_split
from cones.data.synthetic import LEAST_PIXELS, LEAST_SHARE, scenes_picture
from cones.errors import DataError, ParamsError
from cones.files import content_hash, read_json

BCCD = Path(__file__).parents[2] / "shared/data/bccd/BCCD"
SIZE = (30, 40)
SPLIT_OF = dict(zip(range(8), ["train"] * 4 + ["val"] * 2 + ["test"] * 2))


def draw_picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE[::-1], (20 * number, 100, 50)).save(path)


def objects_of(target: Path, name: str) -> tuple[Object, ...]:
    """The objects of a prepared picture, in whichever split it is."""
    records = [r for s in ("train", "val", "test") for r in Split.open(target / s).records]
    return next(r.objects for r in records if r.id == name)


# Masks and manifests


def test_masks_survive_their_text() -> None:
    rng = np.random.default_rng(0)
    for share in (0, 0.01, 0.5, 1):
        mask = rng.random((37, 53)) < share
        text = encode_mask(mask)
        assert np.array_equal(object_mask(Object(0, (0, 0, 1, 1), text), (37, 53)), mask)
        assert mask_area(text) == mask.sum()


def test_outlines_become_masks() -> None:
    square = [5.0, 5.0, 15.0, 5.0, 15.0, 15.0, 5.0, 15.0]
    two = [square, [x + 20 for x in square]]
    expected = np.zeros((40, 40), bool)
    expected[5:15, 5:15] = expected[25:35, 25:35] = True
    assert outline_mask(two, (40, 40)) == encode_mask(expected)
    # Columns of 40: ten with rows 5 to 14, ten without, ten with rows 25 to 34.
    runs = [5 * 40 + 5, *[10, 30] * 9, 10, 25 + 10 * 40 + 25, *[10, 30] * 9, 10, 5 + 5 * 40]
    for counts in (runs, encode_mask(expected)):
        assert outline_mask(Runs(counts, (40, 40)), (40, 40)) == encode_mask(expected)


@pytest.mark.parametrize(
    ("outline", "message"),
    [
        ([[1, 1, 2, 2]], "a polygon of 4 numbers; it takes x and y of at least three points"),
        ([[1, 1, 2, 2, 3, float("nan")]], "a point that is not finite, or further out than the picture is large"),
        ([[1, 1, 2, 2, 3, 1e9]], "a point that is not finite, or further out"),
        (Runs([1200], (40, 30)), "its mask is 30 x 40 pixels, and its picture 40 x 30"),
        (Runs([100, 10], SIZE), "do not add up to the 40 x 30 pixels"),
        (Runs([1300, -100], SIZE), "do not add up"),
        (Runs("", SIZE), "do not add up"),
        (Runs("P", SIZE), "end in the middle of a number"),
        (Runs("a~", SIZE), "'~' does not occur in compressed run lengths"),
    ],
)
def test_what_is_no_mask_is_refused(outline: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        outline_mask(outline, SIZE)


def test_a_mask_that_is_asked_for_must_be_there_and_fit() -> None:
    with pytest.raises(DataError, match="has a box and no mask"):
        object_mask(Object(0, (0, 0, 1, 1)), SIZE)
    with pytest.raises(DataError, match="cannot be used: its run lengths do not add up"):
        object_mask(Object(0, (0, 0, 1, 1), encode_mask(np.ones((4, 4), bool))), SIZE)


def test_manifests_keep_objects_and_stay_what_they_are_without(class_folders: Path, tmp_path: Path) -> None:
    shown = (Object(0, (0.1, 2.0, 3.5, 4.0), encode_mask(np.eye(4, dtype=bool))), Object(1, (0, 0, 1, 1), crowd=True))
    records = (Record("a", -1, "f00", "a.png", shown, (4, 4)), Record("b", -1, "f01", "b.png", (), (5, 6)))
    write_split(tmp_path / "s", ["x", "y"], records)
    assert Split.open(tmp_path / "s").records == records
    assert records_hash(records) != records_hash([Record("a", -1, "f00", "a.png", shown[:1], (4, 4)), records[1]])

    prepare(FolderData(kind="folder", source=str(class_folders)), tmp_path / "p")
    assert set(read_json(tmp_path / "p/val/manifest.json")["records"][0]) == {"id", "label", "sha256", "file"}
    plain = Split.open(tmp_path / "p/val").records
    assert records_hash(plain) == content_hash([(r.sha256, r.label) for r in plain])


# The rules for objects, whatever the layout


@pytest.mark.parametrize(
    ("box", "outline", "kept", "told", "line"),
    [
        ((1, 2, 3, 4), None, (1, 2, 3, 4), None, ""),
        ((0.5, 0.5, 0.9, 0.9), None, (0.5, 0.5, 0.9, 0.9), None, ""),
        ((-0.05, 2, 40.05, 4), None, (0, 2, 40, 4), None, ""),
        ((-1, 2, 50, 4), None, (0, 2, 40, 4), "clipped", "a it: box (-1, 2, 50, 4) of 40 x 30 pixels"),
        ((5, 5, 5, 9), None, None, "zero_area", "a it: box (5, 5, 5, 9)"),
        ((40, 5, 50, 9), None, None, "outside", "a it: box (40, 5, 50, 9) of 40 x 30 pixels"),
        ((-9, 5, 0, 9), None, None, "outside", "a it: box (-9, 5, 0, 9) of 40 x 30 pixels"),
        ((5, 5, 4, 9), None, None, "refused", "a it: box (5, 5, 4, 9) has a negative size"),
        ((5, 5, float("nan"), 9), None, None, "refused", "a it: box (5, 5, nan, 9) is not finite"),
        ((5, 5, float("inf"), 9), None, None, "refused", "a it: box (5, 5, inf, 9) is not finite"),
        ((1, 2, 3, 4), [[1, 1]], None, "refused", "a it: a polygon of 2 numbers; it takes x and y of at least three"),
        ((1, 1, 2, 2), [[1, 1, 1.1, 1, 1, 1.1]], None, "empty_mask", "a it: box (1, 1, 2, 2)"),
    ],
)
def test_each_object_is_kept_listed_or_refused(box, outline, kept, told, line) -> None:
    findings = Findings()
    objects = settle("a", [Mark("it", 0, box, outline)], SIZE, findings)
    assert [o.box for o in objects] == ([] if kept is None else [kept])
    lists = {k: v for k, v in vars(findings).items() if v}
    assert list(lists) == ([told] if told else [])
    assert not told or lists[told][0].startswith(line)


# COCO


def coco(source: Path, change: Callable[[dict], object] = lambda table: None, **settings: Any) -> CocoData:
    """Eight pictures with a cat each, and a dog in every second, in one file; ids that start anywhere."""
    boxes = [(i, 7, [2, 3, 10, 8]) for i in range(8)] + [(i, 3, [20, 10, 12.5, 9]) for i in range(0, 8, 2)]
    table = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30, "license": 1} for i in range(8)],
        "annotations": [
            {"id": 100 + n, "image_id": i, "category_id": c, "bbox": b} for n, (i, c, b) in enumerate(boxes)
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    }
    for i in range(8):
        draw_picture(source / f"{i}.png", i)
    change(table)
    (source / "all.json").write_text(json.dumps(table))
    return CocoData(kind="coco", source=str(source), annotations="all.json", **settings)


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
    with pytest.raises(DataError, match=r"1.png and copy.png are the same picture with different objects; remove one"):
        prepare(coco(tmp_path / "s", lambda t: (copy(t), t["annotations"].pop())), tmp_path / "q")
    config = coco(tmp_path / "s").model_copy(
        update={"annotations": dict.fromkeys(("train", "val", "test"), "all.json")}
    )
    with pytest.raises(DataError, match="16 pictures stand in more than one split"):
        prepare(config, tmp_path / "q")


# Pascal VOC


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
        ("ImageSets/Main/val.txt", None, "Main has train.txt, test.txt but not val.txt; give all three or none"),
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


# YOLO


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
        ({"test": None}, "data.yaml lacks test; give train, val and test, or train alone to have it divided"),
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


# Few shots by picture


def split_of(*shown: str) -> Split:
    """Pictures by the classes that they show, each a letter of abc; a capital is a crowd."""
    records = [
        Record(
            str(i), -1, str(i), "x", tuple(Object("abc".index(c.lower()), (0, 0, 1, 1), crowd=c.isupper()) for c in s)
        )
        for i, s in enumerate(shown)
    ]
    return Split(Path("toy/train"), ("a", "b", "c"), tuple(records))


def test_draws_of_pictures_are_nested_and_show_each_class() -> None:
    split = split_of(*["a"] * 20, *["ab"] * 9, *["aab"] * 4, *["c"] * 5, *["abc"] * 4, *["aC"] * 9, *[""] * 5)
    draws = [draw_pictures(split, shots, seed=3) for shots in range(1, 10)]
    for shots, drawn in enumerate(draws, start=1):
        assert len(set(drawn)) == len(drawn)
        assert all(sum(label in split.records[i].labels for i in drawn) >= shots for label in range(3))
    assert all(more[: len(fewer)] == fewer for fewer, more in pairwise(draws))
    assert draws[8] != draw_pictures(split, 9, seed=4)
    assert draw_pictures(split, None, seed=3) == list(range(56))


def test_too_few_pictures_of_a_class() -> None:
    split = split_of("a", "a", "ab", "cB", "c")
    with pytest.raises(
        DataError, match="2 shots were asked of toy/train, and `b` is shown in 1 pictures; lower `shots`"
    ):
        draw_pictures(split, 2, seed=0)
    drawn = draw_pictures(split, 2, seed=0, at_most=True)
    assert {2, 3, 4} <= set(drawn)
    assert len(drawn) == 4


# Generated scenes


def test_scenes_are_the_same_twice_and_their_truth_is_whole(tmp_path: Path) -> None:
    config = SceneData(kind="scenes", vocabulary="novel", size=64, objects=6, train=20, val=10, test=10)
    report = prepare(config, tmp_path / "p")
    assert prepare(config, tmp_path / "q")["hashes"] == report["hashes"]
    assert (tmp_path / "p/train/images.npy").read_bytes() == (tmp_path / "q/train/images.npy").read_bytes()
    assert report["pictures"] == {"train": 20, "val": 10, "test": 10}
    assert report["objects"]["without_mask"] == report["objects"]["crowd"] == 0
    train = Split.open(tmp_path / "p/train")
    assert train.picture(3).size == (64, 64)
    assert {len(r.objects) for r in train.records} == {1, 2, 3, 4, 5, 6}
    assert all(i % 10 in r.labels for i, r in enumerate(train.records))
    for record in train.records:
        masks = [object_mask(o, record.size) for o in record.objects]
        assert np.sum(masks, axis=0).max() == 1
        for shown, mask in zip(record.objects, masks):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert shown.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            assert mask.sum() >= LEAST_PIXELS


def test_things_of_a_scene_can_be_seen_or_it_is_refused() -> None:
    for i in range(20):
        things = scenes_picture(1, "pretrain", i, 48, ["star", "ring"], 8).things
        assert all(t.mask.sum() >= max(LEAST_PIXELS, LEAST_SHARE * t.pixels) for t in things)
    with pytest.raises(DataError, match=r"objects do not fit into 4 x 4 pixels .*lower `objects` or raise `size`"):
        scenes_picture(0, "train", 0, 4, ["star"], 1)


def test_a_split_of_scenes_shows_each_class(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="`val` must be at least 10, a scene for each class, got 9"):
        prepare(SceneData(kind="scenes", vocabulary="novel", size=32, train=10, val=9), tmp_path / "p")


# The table


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{kind: coco, source: s, annotations: 3}", "`annotations`: must be one path, or a path for each of train, val "
                                                    r"and test, got 3 \(data.d.annotations\)"),
        ("{kind: coco, source: s, annotations: {train: a}}", "a path for each of train, val and test"),
        ("{kind: coco, source: s, annotations: a, pictures: {train: a, val: b, test: c}}",
         "`pictures` by split needs `annotations` by split"),
        ("{kind: voc, source: s, classes: [a, a]}", r"`classes`: must name each class once.*\(data.d.classes\)"),
        ("{kind: scenes, vocabulary: novel, objects: 9}", "`objects`: must be less than or equal to 8, got 9"),
        ("{kind: yolo, source: s, tabel: x}", "unknown key `tabel`; did you mean `table`?"),
    ],
)  # fmt: skip
def test_a_bad_entry_is_refused(tmp_path: Path, entry: str, message: str) -> None:
    (tmp_path / "params.yaml").write_text(f"data:\n  d: {entry}\nbackbones: {{}}\nconcepts: {{}}\nruns: {{}}\n")
    with pytest.raises(ParamsError, match=message):
        load_params(tmp_path / "params.yaml")
