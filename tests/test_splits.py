"""Splits that a data set lacks are divided off its training pictures; copies of a picture are never in two splits."""

import json
from pathlib import Path

import pytest
from PIL import Image

from cones.common.errors import DataError
from cones.data.copying import list_pictures
from cones.data.prepared import SPLITS, Split
from cones.readers.coop import CoOpData
from cones.readers.csv import TableData
from cones.readers.folder import FolderData
from cones.readers.prepare import prepare

ANIMALS = ("cat", "dog")
KEEP = {"train": 6, "val": 2, "test": 2}
"""Pictures a class in each split that a data set has."""


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (seed, 255 - seed, 50)).save(path)


def folders(source: Path, names: dict[str, str], **settings) -> FolderData:
    """Class folders below a folder for each split that `names` has, called as it says."""
    seed = 0
    for split, name in names.items():
        for path in (source / name / animal / f"{i}.png" for animal in ANIMALS for i in range(KEEP[split])):
            draw(path, seed := seed + 1)
    return FolderData(kind="folder", source=str(source), val_fraction=0.3, test_fraction=0.3, **settings)


def records(target: Path) -> dict[str, list[str]]:
    return {split: [r.id for r in Split.open(target / split).records] for split in SPLITS}


@pytest.mark.parametrize(
    ("names", "pictures", "divided"),
    [
        ({"train": "train", "test": "test"}, {"train": 8, "val": 4, "test": 4}, ["val"]),
        ({"train": "train", "val": "valid"}, {"train": 8, "val": 4, "test": 4}, ["test"]),
        ({"train": "train", "val": "validation", "test": "test"}, {"train": 12, "val": 4, "test": 4}, []),
        ({"train": "Training", "test": "Testing"}, {"train": 8, "val": 4, "test": 4}, ["val"]),
        ({"train": "train"}, {"train": 4, "val": 4, "test": 4}, ["val", "test"]),
    ],
)
def test_a_missing_split_is_divided_off_train(tmp_path: Path, names: dict, pictures: dict, divided: list) -> None:
    config = folders(tmp_path / "s", names)
    report = prepare(config, tmp_path / "p")
    assert (report["classes"], report["pictures"], report["divided"]) == (["cat", "dog"], pictures, divided)
    for split, ids in records(tmp_path / "p").items():
        root = names["train"] if split in divided else names[split]
        assert {i.rsplit("/", 1)[0] for i in ids} == {f"{root}/cat", f"{root}/dog"}
    again = prepare(config.model_copy(update={"seed": 1}), tmp_path / "q")
    assert [s for s in SPLITS if again["hashes"][s] != report["hashes"][s]] == (["train", *divided] if divided else [])


def test_classes_may_be_called_as_splits_are(tmp_path: Path) -> None:
    """Without a folder to train on, `valid` is a class."""
    for i in range(16):
        draw(tmp_path / "s" / ("valid", "invalid")[i % 2] / f"{i}.png", i)
    report = prepare(FolderData(kind="folder", source=str(tmp_path / "s")), tmp_path / "p")
    assert (report["classes"], report["divided"]) == (["invalid", "valid"], ["val", "test"])


def test_capitals_do_not_make_classes_of_splits(tmp_path: Path) -> None:
    config = folders(tmp_path / "s", {"val": "Valid", "test": "Test"})
    with pytest.raises(DataError, match=r"has Valid, Test and no `train`; .* A class with the name of a split has to"):
        list_pictures(config)
    (tmp_path / "s/Valid").rename(tmp_path / "s/TRAIN")
    assert list_pictures(config).given == {"train", "test"}


def test_a_class_that_is_called_as_a_split_has_to_be_renamed(tmp_path: Path) -> None:
    for i in range(16):
        draw(tmp_path / "s" / ("training", "resting")[i % 2] / f"{i}.png", i)
    config = FolderData(kind="folder", source=str(tmp_path / "s"))
    with pytest.raises(DataError, match=r"has training and, .* pictures in resting; .* has to be renamed"):
        list_pictures(config)


def test_hidden_folders_are_not_searched(tmp_path: Path) -> None:
    config = folders(tmp_path / "s", {"train": "train"})
    pictures = len(list_pictures(config).pictures)
    for hidden in ("train/cat/.ipynb_checkpoints/0.png", "train/.cache/1.png", "train/cat/._0.png"):
        draw(tmp_path / "s" / hidden, 99)
    (tmp_path / "s/train/cat/.ipynb_checkpoints/notes.txt").write_text("x")
    listing = list_pictures(config)
    assert (len(listing.pictures), listing.report["not_pictures"]) == (pictures, [])


def test_what_lies_beside_the_splits_is_told_or_refused(tmp_path: Path) -> None:
    config = folders(tmp_path / "s", {s: s for s in SPLITS})
    draw(tmp_path / "s/dev/cat/0.png", 200)
    (tmp_path / "s/notes").mkdir()
    assert prepare(config, tmp_path / "p")["not_listed"] == ["dev"]
    (tmp_path / "s/val").rename(tmp_path / "other")
    with pytest.raises(DataError, match=r"has train, test and, beside them, pictures in dev; call the folder of each"):
        prepare(config, tmp_path / "q")
    (tmp_path / "s/dev").rename(tmp_path / "s/val")
    (tmp_path / "other").rename(tmp_path / "s/valid")
    with pytest.raises(DataError, match="has both `val` and `valid`, which are one split; join them"):
        prepare(config, tmp_path / "q")


def test_an_empty_split_is_not_a_missing_one(tmp_path: Path) -> None:
    config = folders(tmp_path / "s", {"train": "train", "test": "test"})
    draw(tmp_path / "s/val/0.png", 200)  # as in sets whose last split has no labels
    assert list_pictures(config).report["not_listed"] == ["val/0.png"]
    with pytest.raises(DataError, match=r"val of .* has no picture that can be used; add some, or remove it, to have"):
        prepare(config, tmp_path / "p")


def test_tables_and_coop_may_lack_a_split(tmp_path: Path) -> None:
    lines = [(f"{animal}/{i}.png", animal, ("train", "valid")[i > 5]) for animal in ANIMALS for i in range(8)]
    for seed, (path, *_) in enumerate(lines):
        draw(tmp_path / "s" / path, seed)
    (tmp_path / "s/labels.csv").write_text("\n".join(map(",".join, [("path", "label", "split"), *lines])))
    content: dict[str, list] = {"train": [], "val": []}
    for path, animal, split in lines:
        content["train" if split == "train" else "val"].append([path, ANIMALS.index(animal), animal])
    (tmp_path / "s/split_zhou_EuroSAT.json").write_text(json.dumps(content))
    table = TableData(kind="csv", source=str(tmp_path / "s"))
    reports = [
        prepare(config, tmp_path / f"p{k}")
        for k, config in enumerate((table, CoOpData(kind="coop", source=table.source, pictures="")))
    ]
    assert [(r["pictures"], r["divided"]) for r in reports] == [({"train": 10, "val": 4, "test": 2}, ["test"])] * 2
    assert reports[0]["hashes"] == reports[1]["hashes"]


# Copies


def copies(tmp_path: Path, **settings) -> FolderData:
    """Given splits; the picture of `train/cat/0.png` is once more in train, and one of `test/cat` once more there."""
    config = folders(tmp_path / "s", {s: s for s in SPLITS}, **settings)
    for copy, original in (("train/cat/copy.png", "train/cat/0.png"), ("test/cat/copy.png", "test/cat/0.png")):
        (tmp_path / "s" / copy).write_bytes((tmp_path / "s" / original).read_bytes())
    return config


def test_a_given_test_does_not_count_a_picture_twice(tmp_path: Path) -> None:
    message = (
        r"1 copies of pictures of .*\n  - test/cat/copy.png \(test\) is a copy of test/cat/0.png \(test\), and would "
        r"count twice\nremove all but one of each, or set `duplicates: drop` .*`keep_first`"
    )
    with pytest.raises(DataError, match=message):
        prepare(copies(tmp_path), tmp_path / "p")
    (tmp_path / "s/test/cat/copy.png").unlink()
    config = folders(tmp_path / "s", {s: s for s in SPLITS})
    report = prepare(config, tmp_path / "p")
    assert report["pictures"] == {"train": 12, "val": 4, "test": 4}
    assert report["duplicates"] == ["train/cat/copy.png (train) is a copy of train/cat/0.png (train)"]


@pytest.mark.parametrize("rule", ["drop", "keep_first"])
def test_copies_that_show_the_same_are_reduced_to_one(tmp_path: Path, rule: str) -> None:
    report = prepare(copies(tmp_path, duplicates=rule), tmp_path / "p")
    assert report["pictures"] == {"train": 12, "val": 4, "test": 4}
    assert report["duplicates"] == [
        "test/cat/copy.png (test) is a copy of test/cat/0.png (test)",
        "train/cat/copy.png (train) is a copy of train/cat/0.png (train)",
    ]
    assert report["conflicting"] == []


@pytest.mark.parametrize(
    ("split", "name"), [("train", "train/{}/0.png ({})"), ("test", "test/{}/0.png ({})"), ("", "{}/0.png")]
)
def test_a_picture_under_two_classes(tmp_path: Path, split: str, name: str) -> None:
    """In a given split, and in pictures that are yet to be divided."""
    if split:
        folders(tmp_path / "s", {s: s for s in SPLITS})
    else:
        for seed in range(16):
            draw(tmp_path / "s" / ANIMALS[seed % 2] / f"{seed // 2}.png", seed)
    root = tmp_path / "s" / split
    (root / "dog/0.png").write_bytes((root / "cat/0.png").read_bytes())
    config = FolderData(kind="folder", source=str(tmp_path / "s"))
    cat, dog = (name.format(animal, split) for animal in ANIMALS)
    with pytest.raises(DataError) as refused:
        prepare(config, tmp_path / "p")
    assert f"\n  - {cat} and {dog} are the same picture under two classes\n" in str(refused.value)

    dropped = prepare(config.model_copy(update={"duplicates": "drop"}), tmp_path / "d")
    assert dropped["conflicting"] == [
        f"{a} and {b} are the same picture under two classes" for a, b in ((cat, dog), (dog, cat))
    ]
    kept = prepare(config.model_copy(update={"duplicates": "keep_first"}), tmp_path / "k")
    assert kept["conflicting"] == [f"{dog} and {cat} are the same picture under two classes"]
    assert sum(kept["pictures"].values()) == sum(dropped["pictures"].values()) + 1
    there = [i for ids in records(tmp_path / "k").values() for i in ids]
    assert (cat.split()[0] in there, dog.split()[0] in there) == (True, False)


def test_a_picture_of_two_splits_leaves_the_training_side(tmp_path: Path) -> None:
    config = folders(tmp_path / "s", {s: s for s in SPLITS})
    for copy in ("train/cat/5.png", "val/cat/1.png"):
        (tmp_path / "s" / copy).write_bytes((tmp_path / "s/test/cat/0.png").read_bytes())
    (tmp_path / "s/train/dog/5.png").write_bytes((tmp_path / "s/val/dog/0.png").read_bytes())
    way_out = r"3 pictures stand in more than one split.*or set `duplicates: keep_first`, which takes them out of train"
    with pytest.raises(DataError, match=way_out):
        prepare(config, tmp_path / "p")
    report = prepare(config.model_copy(update={"duplicates": "keep_first"}), tmp_path / "p")
    assert report["pictures"] == {"train": 10, "val": 3, "test": 4}
    assert report["duplicates"] == [
        "val/cat/1.png (val) is a copy of test/cat/0.png (test)",
        "train/cat/5.png (train) is a copy of test/cat/0.png (test)",
        "train/dog/5.png (train) is a copy of val/dog/0.png (val)",
    ]


@pytest.mark.parametrize(
    ("rule", "pictures"), [("drop", {"train": 11, "test": 3}), ("keep_first", {"train": 11, "test": 4})]
)
def test_a_picture_of_two_splits_under_two_classes(tmp_path: Path, rule: str, pictures: dict) -> None:
    config = folders(tmp_path / "s", {s: s for s in SPLITS}, duplicates=rule)
    (tmp_path / "s/train/cat/0.png").write_bytes((tmp_path / "s/test/dog/0.png").read_bytes())
    report = prepare(config, tmp_path / "p")
    assert report["pictures"] == {"val": 4, **pictures}
    assert (
        "train/cat/0.png (train) and test/dog/0.png (test) are the same picture under two classes"
        in report["conflicting"]
    )


def test_all_copies_of_a_picture_under_two_classes_are_dropped(tmp_path: Path) -> None:
    config = folders(tmp_path / "s", {"train": "train"}, duplicates="drop")
    for copy in ("cat/1.png", "dog/0.png"):
        (tmp_path / "s/train" / copy).write_bytes((tmp_path / "s/train/cat/0.png").read_bytes())
    report = prepare(config, tmp_path / "p")
    assert [line.split()[0] for line in report["conflicting"]] == [
        "train/cat/0.png",
        "train/cat/1.png",
        "train/dog/0.png",
    ]
    assert (report["duplicates"], sum(report["pictures"].values())) == ([], 9)


def test_dividing_puts_no_copies_into_two_splits(tmp_path: Path) -> None:
    config = folders(tmp_path / "s", {"train": "train", "test": "test"})
    for i in range(40):
        (tmp_path / f"s/train/cat/copy{i}.png").write_bytes((tmp_path / "s/train/cat/0.png").read_bytes())
    report = prepare(config, tmp_path / "p")
    assert report["pictures"] == {"train": 8, "val": 4, "test": 4}
    assert len(report["duplicates"]) == 40
