"""Data: the world is reproducible, draws are nested, and bad pictures or splits are refused plainly."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from layouts import deep_png
from PIL import Image
from pydantic import ValidationError

from cones.backbones.clip.settings import ClipModel
from cones.common.errors import DataError
from cones.data.pictures import open_picture, random_view
from cones.data.prepared import Split
from cones.data.splits import draw_shots
from cones.readers.coop import CoOpData
from cones.readers.csv import TableData
from cones.readers.folder import FolderData
from cones.readers.prepare import prepare
from cones.readers.world import WorldData
from cones.synthetic.things import NOVEL
from cones.synthetic.world import CAPTIONS, SHAPES, described, picture, scene
from cones.tasks.classification.settings import ClassificationConcept
from cones.tasks.encode import draw, encode_concept


def test_a_scene_is_the_same_from_the_same_seed_and_true_to_its_labels() -> None:
    first, again = (scene(np.random.default_rng(5), 96, ["star", "zorb"]) for _ in range(2))
    assert np.array_equal(first.image, again.image)
    assert first.caption == again.caption
    assert "star" in first.caption
    assert "zorb" in first.caption
    for thing in first.things:
        rows, columns = np.flatnonzero(thing.mask.any(1)), np.flatnonzero(thing.mask.any(0))
        assert thing.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert not (first.things[0].mask & first.things[1].mask).any()


def test_splits_of_the_world_differ() -> None:
    pictures = [picture(0, split, 0, 32, "star").image.tobytes() for split in ("train", "val", "test", "pretrain")]
    assert len(set(pictures)) == 4


def test_novel_classes_are_not_in_the_base_vocabulary() -> None:
    told = " ".join(CAPTIONS) + " ".join(SHAPES)
    assert not any(name in told or shape in SHAPES for name, (shape, _) in NOVEL.items())


def test_draws_are_nested_and_seeded(tmp_path: Path) -> None:
    prepare(WorldData(kind="world", vocabulary="novel", size=32, train=8, val=1, test=1), tmp_path / "p")
    split = Split.open(tmp_path / "p/train")
    draws = {k: set(draw_shots(split, k, seed=1)) for k in (1, 2, 4, 8)}
    assert draws[1] < draws[2] < draws[4] < draws[8]
    assert all(len(d) == 10 * k for k, d in draws.items())
    assert draws[4] != set(draw_shots(split, 4, seed=2))
    labels = [split.records[i].label for i in draw_shots(split, 4, seed=1)]
    assert np.bincount(labels).tolist() == [4] * 10


def test_more_shots_than_a_class_holds(tmp_path: Path) -> None:
    prepare(WorldData(kind="world", vocabulary="novel", size=32, train=2, val=1, test=1), tmp_path / "p")
    with pytest.raises(DataError, match=r"3 shots were asked of .*`zorb` has 2"):
        draw_shots(Split.open(tmp_path / "p/train"), 3, seed=0)


def test_class_folders_are_split_and_copied(class_folders: Path, tmp_path: Path) -> None:
    report = prepare(FolderData(kind="folder", source=str(class_folders)), tmp_path / "p")
    assert report["classes"] == ["cat", "dog"]
    assert report["pictures"] == {"train": 8, "val": 4, "test": 4}
    again = prepare(FolderData(kind="folder", source=str(class_folders)), tmp_path / "q")
    assert again["hashes"] == report["hashes"]
    assert Split.open(tmp_path / "p/train").picture(0).size == (20, 24)


def test_given_splits_are_kept(class_folders: Path, tmp_path: Path) -> None:
    source = tmp_path / "given"
    for split, numbers in {"train": range(4), "val": range(4, 6), "test": range(6, 8)}.items():
        for name in ("cat", "dog"):
            (source / split / name).mkdir(parents=True)
            for i in numbers:
                shutil.copy(class_folders / name / f"{i}.png", source / split / name)
    report = prepare(FolderData(kind="folder", source=str(source)), tmp_path / "p")
    assert report["pictures"] == {"train": 8, "val": 4, "test": 4}

    shutil.copy(source / "train/cat/0.png", source / "test/cat/copy.png")
    with pytest.raises(DataError, match=r"1 pictures stand in more than one split.*train/cat/0.png"):
        prepare(FolderData(kind="folder", source=str(source)), tmp_path / "q")
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_unreadable_pictures_are_refused_by_name_or_listed(class_folders: Path, tmp_path: Path, content) -> None:
    bad = class_folders / "cat/bad.png"
    whole = (class_folders / "cat/0.png").read_bytes()
    bad.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(DataError, match=r"1 pictures of .* cannot be used:\n  - cat/bad.png"):
        prepare(FolderData(kind="folder", source=str(class_folders)), tmp_path / "p")
    assert not list(tmp_path.glob("*p*/")) or not (tmp_path / "p").exists()
    prepare(FolderData(kind="folder", source=str(class_folders), unreadable="skip"), tmp_path / "p")
    assert len(json.loads((tmp_path / "p/report.json").read_text())["unreadable"]) == 1


def test_copies_count_once_and_one_picture_has_one_class(class_folders: Path, tmp_path: Path) -> None:
    shutil.copy(class_folders / "cat/0.png", class_folders / "cat/copy.png")
    report = prepare(FolderData(kind="folder", source=str(class_folders)), tmp_path / "p")
    assert report["duplicates"] == ["cat/copy.png is a copy of cat/0.png"]
    shutil.copy(class_folders / "cat/0.png", class_folders / "dog/cat.png")
    with pytest.raises(DataError, match="the same picture under two classes"):
        prepare(FolderData(kind="folder", source=str(class_folders)), tmp_path / "q")


def test_a_class_without_pictures(class_folders: Path, tmp_path: Path) -> None:
    (class_folders / "bird").mkdir()
    with pytest.raises(DataError, match="the class `bird` has no pictures"):
        prepare(FolderData(kind="folder", source=str(class_folders)), tmp_path / "p")


def test_no_folder_and_half_given_splits(class_folders: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        prepare(FolderData(kind="folder", source=str(tmp_path / "nowhere")), tmp_path / "p")
    (class_folders / "train").mkdir()
    with pytest.raises(DataError, match=r"has train and, beside them, pictures in cat, dog; call the folder of each"):
        prepare(FolderData(kind="folder", source=str(class_folders)), tmp_path / "p")
    (class_folders / "train").rename(class_folders / "test")
    with pytest.raises(DataError, match=r"has test and no `train`; give one"):
        prepare(FolderData(kind="folder", source=str(class_folders)), tmp_path / "p")


def test_pictures_are_turned_and_deep_ones_refused(tmp_path: Path) -> None:
    turned = Image.new("RGB", (10, 20))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert open_picture(tmp_path / "turned.jpg").size == (20, 10)
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="more than 8 bits"):
        open_picture(tmp_path / "deep.png")


def deep_tiff(path: Path) -> None:
    """A TIFF of 4 x 4 pixels with three channels of 16 bits, uncompressed, which Pillow does not write either."""
    short, long = 3, 4
    tags = [
        (256, short, 1, 4), (257, short, 1, 4), (258, short, 3, 122), (259, short, 1, 1), (262, short, 1, 2),
        (273, long, 1, 128), (277, short, 1, 3), (278, short, 1, 4), (279, long, 1, 96),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    bits = struct.pack("<3H", 16, 16, 16)
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + bits + bytes(96))


@pytest.mark.parametrize(("channels", "kind"), [(3, 2), (4, 6), (2, 4)])
def test_colour_of_more_than_8_bits_is_refused(tmp_path: Path, channels: int, kind: int) -> None:
    deep_png(tmp_path / "deep.png", channels, kind)
    with pytest.raises(
        DataError, match=r"deep.png has 16 bits a channel \(mode RGBA?\); save it with 8 bits a channel"
    ):
        open_picture(tmp_path / "deep.png")


def test_a_tiff_of_more_than_8_bits_is_refused(tmp_path: Path) -> None:
    deep_tiff(tmp_path / "deep.tif")
    with pytest.raises(DataError, match=r"deep.tif has 16 bits a channel \(mode RGB\); save it with 8"):
        open_picture(tmp_path / "deep.tif")
    for mode in ("RGB", "L", "1", "CMYK"):
        Image.new(mode, (4, 4)).save(tmp_path / "plain.tif")
        assert open_picture(tmp_path / "plain.tif").size == (4, 4)


@pytest.mark.parametrize("suffix", ["tif", "webp", "png", "gif"])
def test_files_of_several_pictures_are_refused(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), (100 * i, 0, 0)) for i in range(3)]
    frames[0].save(tmp_path / f"one.{suffix}")
    assert open_picture(tmp_path / f"one.{suffix}").size == (8, 8)
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=rf"a.{suffix} holds 3 pictures .* save those that are meant as files of their"):
        open_picture(tmp_path / f"a.{suffix}")


def test_a_camera_may_put_more_behind_a_photograph(tmp_path: Path) -> None:
    first, behind = (Image.new("RGB", (8, 8), colour) for colour in ("white", "black"))
    first.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[behind])
    assert open_picture(tmp_path / "phone.jpg").getpixel((4, 4)) == (255, 255, 255)


def test_random_views_keep_enough_of_the_picture() -> None:
    rng = np.random.default_rng(0)
    sizes = [random_view(Image.new("RGB", (60, 40)), 0.5, rng).size for _ in range(200)]
    assert min(w * h for w, h in sizes) >= 0.49 * 60 * 40 * 0.8
    assert len(set(sizes)) > 50


def table(source: Path, lines: list[tuple], name: str = "labels.csv") -> TableData:
    (source / name).write_text("\n".join(",".join(line) for line in lines))
    return TableData(kind="csv", source=str(source), table=name)


ALL = [(f"{c}/{i}.png", c) for c in ("cat", "dog") for i in range(8)]


def test_a_table_is_read_like_folders(class_folders: Path, tmp_path: Path) -> None:
    config = table(class_folders, [("path", "label", "taken"), *[(p, c, "2026") for p, c in ALL]])
    report = prepare(config, tmp_path / "p")
    assert report["pictures"] == {"train": 8, "val": 4, "test": 4}
    assert report["hashes"] == prepare(FolderData(kind="folder", source=str(class_folders)), tmp_path / "q")["hashes"]


def test_a_table_may_name_links(class_folders: Path, tmp_path: Path) -> None:
    """Folders of links into a large store are common; their content is what counts."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("cat", "dog"):
        (linked / name).symlink_to(class_folders / name)
    report = prepare(table(linked, [("path", "label"), *ALL]), tmp_path / "p")
    assert report["pictures"] == {"train": 8, "val": 4, "test": 4}


def test_a_table_may_have_splits(class_folders: Path, tmp_path: Path) -> None:
    splits = ["train", "train", "train", "train", "train", "val", "test", "test"] * 2
    config = table(class_folders, [("path", " label", "split"), *[(p, c, s) for (p, c), s in zip(ALL, splits)]])
    report = prepare(config, tmp_path / "p")
    assert report["pictures"] == {"train": 10, "val": 2, "test": 4}
    test = Split.open(tmp_path / "p/test")
    assert [r.id for r in test.records] == ["cat/6.png", "cat/7.png", "dog/6.png", "dog/7.png"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([("file", "label")], "has no column `path`"),
        ([("path;label",), ("a;b",)], "has no column `path`; it must be a comma-separated table"),
        ([("path", "label"), ("cat/0.png", "")], "line 2 of .*labels.csv has no label"),
        ([("path", "label"), ("../x.png", "cat")], r"`../x.png` in line 2 of labels.csv lies outside"),
        ([("path", "label"), ("/etc/hostname", "cat")], "`/etc/hostname` in line 2 of labels.csv lies outside"),
        ([("path", "label"), *ALL, ("cat/0.png", "dog")], "line 18 of labels.csv names `cat/0.png` once more"),
        ([("path", "label"), *ALL, ("cat/none.png", "cat")], "cat/none.png does not exist"),
        ([("path", "label"), *ALL[:8]], "holds 1 classes; at least two are needed"),
        ([("path", "label", "split"), ("cat/0.png", "cat", "vall")], "must be one of train, val, test, got 'vall'"),
        ([("path", "label", "split"), ("cat/0.png", "cat", "")], "must be one of train, val, test, got ''"),
        ([("path", "label", "split"), *[(p, c, "test") for p, c in ALL]], "has test and no `train`"),
        ([("path", "label", "split"), *zip(*zip(*ALL), ["train", "val", "valid"] * 6)], "has both `val` and `valid`"),
    ],
)
def test_a_bad_table_is_refused_by_its_line(class_folders: Path, tmp_path: Path, lines: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare(table(class_folders, lines), tmp_path / "p")
    assert not list(tmp_path.glob("*p*/manifest.json"))


def test_a_table_may_name_a_picture_under_two_classes(class_folders: Path, tmp_path: Path) -> None:
    config = table(class_folders, [("path", "label"), *ALL, ("cat/0.png", "dog"), ("cat/1.png", "cat")])
    report = prepare(config.model_copy(update={"duplicates": "drop"}), tmp_path / "p")
    assert sum(report["pictures"].values()) == 15
    assert report["conflicting"] == ["cat/0.png and cat/0.png are the same picture under two classes"] * 2
    assert report["duplicates"] == ["cat/1.png is a copy of cat/1.png"]


def coop(source: Path, content: dict, name: str = "split_zhou_EuroSAT.json") -> CoOpData:
    (source / name).write_text(json.dumps(content))
    return CoOpData(kind="coop", source=str(source))


def zhou() -> dict:
    """Eight pictures of two classes in CoOp's layout, numbered against the alphabet."""
    lines = [[p, ["dog", "cat"].index(c), {"cat": "house_cat", "dog": "dog"}[c]] for p, c in ALL]
    return {"train": lines[:4] + lines[8:12], "val": lines[4:6] + lines[12:14], "test": lines[6:8] + lines[14:]}


def test_coop_splits_bring_their_pictures_classes_and_sentence(class_folders: Path, tmp_path: Path) -> None:
    (class_folders / "2750").mkdir()
    for name in ("cat", "dog"):
        (class_folders / name).rename(class_folders / "2750" / name)
    report = prepare(coop(class_folders, zhou()), tmp_path / "p")
    assert report["classes"] == ["dog", "house_cat"]
    assert report["pictures"] == {"train": 8, "val": 4, "test": 4}
    train = Split.open(tmp_path / "p/train")
    assert train.templates == ("a centered satellite photo of {}.",)
    assert {(r.id.split("/")[0], r.label) for r in train.records} == {("cat", 1), ("dog", 0)}
    concept = ClassificationConcept(task="classification", backbone="toy", data="d", shots=2, views=1)
    assert draw(concept, tmp_path / "p").names == ["dog", "house cat"]


def test_a_concept_says_the_sentence_of_its_data(class_folders: Path, tmp_path: Path, toy_clip: Path) -> None:
    own = ["{} texture."]
    backbone = ClipModel(kind="clip", source=str(toy_clip))
    prepare(coop(class_folders, zhou(), "split_zhou_DescribableTextures.json").model_copy(update={"pictures": ""}),
            tmp_path / "p")  # fmt: skip
    for given, said in ((None, own), (["my {}"], ["my {}"])):
        concept = ClassificationConcept(
            task="classification", backbone="toy", data="d", shots=2, views=1, templates=given
        )
        encoded = encode_concept("d", concept, backbone, draw(concept, tmp_path / "p"), tmp_path / "e")
        assert encoded.about["templates"] == said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z: z.pop("train"), "has val, test and no `train`"),
        (lambda z: z.update(dev=z.pop("val")), "has the splits train, test, dev; it may have train, val, test"),
        (lambda z: z.update(val=[]), "val of .* has no picture that can be used; add some, or remove it"),
        (lambda z: z["train"].append(["cat/0.png", "0", "cat"]), r"is not one of CoOp's splits.*train\.8\.1"),
        (lambda z: z["train"].append(["cat/0.png", 0, "cat"]), "calls the class 0 both"),
        (lambda z: z["train"].append(["cat/0.png", 5, "cow"]), "must number its classes from 0 without gaps"),
        (lambda z: z["train"].append(["../../x.png", 0, "dog"]), "lies outside"),
        (lambda z: z["train"].append(z["test"][0]), "pictures stand in more than one split"),
    ],
)
def test_a_bad_coop_split_is_refused(class_folders: Path, tmp_path: Path, change, message: str) -> None:
    content = zhou()
    change(content)
    with pytest.raises(DataError, match=message):
        prepare(coop(class_folders, content, "split_zhou_StanfordCars.json"), tmp_path / "p")


@pytest.mark.parametrize(
    "config",
    [
        TableData(kind="csv", source="pictures", table="../labels.csv"),
        CoOpData(kind="coop", source="pictures", pictures=".."),
    ],
)
def test_a_list_does_not_lead_out_of_its_folder(config, class_folders: Path, tmp_path: Path) -> None:
    coop(class_folders, zhou())
    (tmp_path / "labels.csv").write_text("path,label")
    config = config.model_copy(update={"source": str(class_folders)})
    with pytest.raises(DataError, match=r"lies outside .*only that folder is watched"):
        prepare(config, tmp_path / "p")


def test_which_coop_split_must_be_plain(class_folders: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds 0 files split_zhou_"):
        prepare(CoOpData(kind="coop", source=str(class_folders)), tmp_path / "p")
    with pytest.raises(DataError, match=r"there is no split .*split_zhou_Cars.json"):
        prepare(CoOpData(kind="coop", source=str(class_folders), split="split_zhou_Cars.json"), tmp_path / "p")


def test_a_damaged_picture_is_noticed(class_folders: Path, tmp_path: Path) -> None:
    prepare(FolderData(kind="folder", source=str(class_folders)), tmp_path / "p")
    split = Split.open(tmp_path / "p/train")
    path = tmp_path / "p/train" / split.records[0].file
    Image.new("RGB", (20, 24), "white").save(path)
    with pytest.raises(DataError, match=r"the picture .* is damaged; `cones doctor --cache` names what to remove"):
        split.picture(0)


def test_the_world_varies_by_its_knobs_and_is_as_ever_without_them(tmp_path: Path) -> None:
    sizes = {"kind": "world", "vocabulary": "base", "size": 32, "train": 6, "val": 1, "test": 1}
    knobs = {"as ever": {}, "told": {"variety": 1.0, "contrast": 1.0}, "calm": {"variety": 0.1},
             "faint": {"contrast": 0.2}}  # fmt: skip
    made = {}
    for name, settings in knobs.items():
        prepare(WorldData(**sizes, **settings), tmp_path / name)
        made[name] = np.load(tmp_path / name / "train/images.npy").astype(float)
    for index in range(12):
        assert np.array_equal(made["as ever"][index], picture(0, "train", index, 32, SHAPES[index]).image)
    assert np.array_equal(made["as ever"], made["told"])
    assert abs(made["faint"] - (127.5 + 0.2 * (made["as ever"] - 127.5))).max() <= 0.5
    within = {name: images.reshape(6, 12, -1).var(0).mean() for name, images in made.items()}
    assert within["calm"] < 0.4 * within["as ever"]


def test_classes_that_words_describe(tmp_path: Path) -> None:
    made = {differ: described(differ, 3) for differ in (("texture",), ("shape", "colour"))}
    words = {differ: list(zip(*(name.split() for name in names))) for differ, names in made.items()}
    assert [len(set(w)) for w in words["texture",]] == [1, 6, 1]
    assert [len(set(w)) for w in words["shape", "colour"]] == [6, 1, 6]
    for name in made["shape", "colour"]:
        (thing,), ground = picture(0, "train", 0, 48, name).things, picture(0, "train", 0, 48, name).ground
        assert f"{thing.colour} {thing.texture} {thing.name}" == name
        assert ground != thing.colour  # it can be seen
    few = {"kind": "world", "size": 32, "train": 1, "val": 1, "test": 1, "differ": ["texture"], "seed": 3}
    assert prepare(WorldData(vocabulary="base", **few), tmp_path / "p")["classes"] == list(made["texture",])
    with pytest.raises(ValidationError, match="set `vocabulary` to base"):
        WorldData(vocabulary="novel", **few)
