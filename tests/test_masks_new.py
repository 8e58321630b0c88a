"""Masks that `cones new` finds: what a folder with them can be read as, and what has to be said."""

from pathlib import Path

import pytest
from layouts import objects_of
from masked import BOXES, draw, folders, mask

from cones.cli.recognise import look_at
from cones.common.errors import DataError
from cones.data.masknames import masks_beside
from cones.readers.folder import FolderData
from cones.readers.masks.settings import MaskData
from cones.readers.prepare import prepare
from cones.readers.subject import SubjectData


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_folders_of_pictures_and_masks_are_no_classes_unless_one_says_so(here: Path) -> None:
    folders(Path("cells"))
    assert look_at(Path("cells")).entry["kind"] == "masks"
    told = look_at(Path("cells"), "classification")
    assert (told.entry, told.classes) == ({"kind": "folder", "source": "cells"}, ["images", "masks"])
    with pytest.raises(DataError, match="cells itself holds no 3 pictures of one subject"):
        look_at(Path("cells"), "generation")
    Path("cells/masks/3.png").rename("cells/masks/other.png")
    with pytest.raises(DataError, match=r"images/3.jpg has no mask; it would be cells/masks/3.\*.* --task classif"):
        look_at(Path("cells"))


def test_masks_beside_pictures_of_class_folders_can_be_read_in_two_ways(here: Path) -> None:
    for c in ("benign", "malignant"):
        for i in range(8):
            draw(Path(f"scans/{c}/{i}.png"), i + 10 * (c == "benign"))
            mask(Path(f"scans/{c}/{i}_mask.png"))
    with pytest.raises(DataError, match="two ways: class folders of whole pictures, and marks of the objects in them"):
        look_at(Path("scans"))
    assert look_at(Path("scans"), "segmentation").counts == {"object": 32}
    told = look_at(Path("scans"), "classification")
    assert (told.entry["kind"], told.counts) == ("folder", {"benign": 8, "malignant": 8})
    report = prepare(FolderData(kind="folder", source="scans"), Path("out"))
    assert sum(report["pictures"].values()) == 16
    assert report["masks"][:2] == ["benign/0_mask.png", "benign/1_mask.png"]
    assert len(report["masks"]) == 16


def test_class_folders_may_each_have_pictures_and_masks(here: Path) -> None:
    """Masks in a class folder are no pictures of the class; a folder for each picture is no class."""
    for c in ("covid", "normal"):
        for i in range(8):
            draw(Path(f"scans/{c}/images/{i}.png"), i + 10 * (c == "covid"))
            mask(Path(f"scans/{c}/masks/{i}.png"))
    with pytest.raises(DataError, match="two ways: class folders of whole pictures, and marks of the objects in them"):
        look_at(Path("scans"))
    assert look_at(Path("scans"), "classification").counts == {"covid": 8, "normal": 8}
    assert look_at(Path("scans"), "detection").counts == {"object": 32}
    report = prepare(FolderData(kind="folder", source="scans"), Path("out"))
    assert sum(report["pictures"].values()) == len(report["masks"]) == 16


def test_class_folders_may_have_several_folders_of_pictures_and_of_masks(here: Path) -> None:
    """All masks are left out of classes; which are those of which pictures has to be known to read the objects."""
    for c in ("covid", "normal"):
        for i in range(8):
            draw(Path(f"scans/{c}/images/{i}.png"), i + 10 * (c == "covid"))
            draw(Path(f"scans/{c}/originals/{i}.png"), 20 + i + 10 * (c == "covid"))
            mask(Path(f"scans/{c}/masks/{i}.png"))
            mask(Path(f"scans/{c}/labels/{i}.png"))
    assert look_at(Path("scans"), "classification").counts == {"covid": 16, "normal": 16}
    report = prepare(FolderData(kind="folder", source="scans"), Path("out"))
    assert sum(report["pictures"].values()) == len(report["masks"]) == 32
    with pytest.raises(DataError, match="two ways: class folders of whole pictures, and marks of the objects in them"):
        look_at(Path("scans"))
    with pytest.raises(DataError, match=r"covid has several folders .* write `kind: masks` with the two to use"):
        look_at(Path("scans"), "detection")
    lines = [f"{c}/images/{i}.png,{c}" for c in ("covid", "normal") for i in range(8)]
    Path("scans/list.csv").write_text("\n".join(["path,label", *lines]))
    with pytest.raises(DataError, match="two ways: a list of whole pictures, and marks"):
        look_at(Path("scans"))


def test_masks_below_the_pictures_of_a_class_are_none_of_them(here: Path) -> None:
    for c in ("cat", "dog"):
        for i in range(8):
            draw(Path(f"pets/{c}/{i}.png"), i + 10 * (c == "cat"))
            mask(Path(f"pets/{c}/labels/{i}_mask.png"))
        draw(Path(f"pets/{c}/labels/other.png"), 20 + (c == "cat"))
    report = prepare(FolderData(kind="folder", source="pets"), Path("out"))
    assert sum(report["pictures"].values()) == 2 * 9
    assert len(report["masks"]) == 2 * 8


def test_a_split_may_lack_a_class_that_has_masks(here: Path) -> None:
    for folder in ("train/cat", "test/cat", "test/dog"):
        for i in range(4):
            draw(Path(f"scans/{folder}/{i}.png"), i)
            mask(Path(f"scans/{folder}/{i}_mask.png"))
    with pytest.raises(DataError, match="two ways: class folders of whole pictures, and marks of the objects in them"):
        look_at(Path("scans"))


def test_a_way_out_is_offered_only_where_it_is_one(here: Path) -> None:
    for i in range(4):
        draw(Path(f"cells/{i}.png"), i)
        mask(Path(f"cells/{i}_mask.png"))
    draw(Path("cells/late.png"), 5)
    with pytest.raises(DataError, match=r"cells/late.png has no mask; .*set what masks are called with `ending`$"):
        look_at(Path("cells"))
    folders(Path("both"))
    draw(Path("both/images/late.png"), 9)
    for i in range(3):
        draw(Path(f"both/{i}.png"), i)
    with pytest.raises(DataError, match=r"late.png has no mask; .*; --task classification .*; --task generation") as no:
        look_at(Path("both"))
    assert look_at(Path("both"), "generation").pictures == 3
    assert "classification reads its folders as classes" in str(no.value)
    assert look_at(Path("both"), "classification").classes == ["images", "masks"]


def test_what_a_mask_beside_its_picture_is_called() -> None:
    called = ["x_mask", "x-mask", "x.mask", "x mask", "x_masks", "x_SEG", "x_segmentation", "x_mask_1", "x_mask2"]
    others = ["x", "xmask", "x_masked", "y_mask", "mask", "_mask", "x_gt", "x_1", "with_mask"]
    there = [Path(f"a/{name}.png") for name in (*called, *others)]
    assert [p.stem for p in masks_beside(there)] == called
    assert masks_beside([Path("a/x.png"), Path("b/x_mask.png")]) == {}
    assert masks_beside([Path("a/x.jpg"), Path("a/x_mask.png")]) == {Path("a/x_mask.png"): "_mask"}


def test_masks_are_no_pictures_of_a_subject(here: Path) -> None:
    for i in range(4):
        draw(Path(f"rex/{i}.png"), i)
        mask(Path(f"rex/{i}_mask.png"))
    assert look_at(Path("rex")).entry["kind"] == "masks"
    for attempt in (
        lambda: look_at(Path("rex"), "generation"),
        lambda: prepare(SubjectData(kind="subject", source="rex"), Path("out")),
    ):
        with pytest.raises(DataError, match=r"rex holds masks among its pictures, such as \d_mask.png; move them"):
            attempt()


def test_a_subject_may_have_a_folder_of_masks(here: Path) -> None:
    for i in range(4):
        draw(Path(f"rex/{i}.jpg"), i)
        mask(Path(f"rex/masks/{i}.png"))
    for task in (None, "generation"):
        found = look_at(Path("rex"), task)
        assert found.entry == {"kind": "subject", "source": "rex", "masks": "masks"}
        assert (found.pictures, found.one_subject) == (4, True)
    assert prepare(SubjectData(**found.entry), Path("out"))["pictures"]["train"] == 3
    mask(Path("rex/labels/0.png"))
    with pytest.raises(
        DataError, match=r"rex/labels has no mask for 1.jpg; add 1.png there, take the picture away, or"
    ):
        look_at(Path("rex"), "generation")
    with pytest.raises(DataError, match=r"has 2 classes, .*; --task generation makes new pictures of the 4 that lie"):
        look_at(Path("rex"))
    for i in range(4):
        mask(Path(f"rex/labels/{i}.png"))
    with pytest.raises(DataError, match="rex has masks in labels and in masks; move one of the folders out of it"):
        look_at(Path("rex"), "generation")
    Path("rex/labels").rename("rex/more")
    Path("rex/masks").rename("rex/other")
    assert look_at(Path("rex"), "generation").entry == {"kind": "subject", "source": "rex"}


def test_a_hidden_mask_is_no_mask_of_a_subject(here: Path) -> None:
    """As macOS leaves them beside files on disks of others."""
    for i in range(4):
        draw(Path(f"rex/{i}.png"), i)
    Path("rex/._mask.png").write_bytes(b"x")
    assert look_at(Path("rex"), "generation").pictures == 4
    assert prepare(SubjectData(kind="subject", source="rex"), Path("out"))["pictures"]["train"] == 3


def test_a_list_of_classes_and_masks_are_two_ways(here: Path) -> None:
    folders(Path("cells"))
    lines = [f"images/{i}.jpg,{'ab'[i % 2]}" for i in range(8)]
    Path("cells/list.csv").write_text("\n".join(["path,label", *lines]))
    with pytest.raises(DataError, match="two ways: a list of whole pictures, and marks"):
        look_at(Path("cells"))
    assert look_at(Path("cells"), "classification").entry["kind"] == "csv"
    assert look_at(Path("cells"), "detection").entry["kind"] == "masks"
    with pytest.raises(DataError, match=r"list.csv lists classes of pictures, which is not for detection"):
        look_at(Path("cells/list.csv"), "detection")


def test_values_are_asked_for_where_there_are_several(here: Path) -> None:
    folders(Path("cells"), (1, 2))
    with pytest.raises(DataError, match=r"have the values 1, 2 \(0.png\): say what they stand for, with `--values cl"):
        look_at(Path("cells"))
    classes = look_at(Path("cells"), values="classes")
    assert (classes.entry["values"], classes.counts) == ([1, 2], {"1": 8, "2": 8})
    instances = look_at(Path("cells"), values="instances")
    assert (instances.entry["objects"], instances.counts) == ("instances", {"object": 16})
    prepare(MaskData(kind="masks", source="cells", values=[2, 1], classes=["ring", "star"]), Path("out"))
    assert [(o.label, o.box) for o in objects_of(Path("out"), "images/0.jpg")] == [(1, BOXES[0]), (0, BOXES[1])]


def test_shades_are_cut_at_half(here: Path) -> None:
    folders(Path("cells"), (100, 200))
    found = look_at(Path("cells"), values="shades")
    assert (found.entry["threshold"], found.counts) == (128, {"object": 8})
    with pytest.raises(DataError, match="--values classes is for pictures with masks, and cells/images is none of"):
        look_at(Path("cells/images"), values="classes")
