"""Data sets of the papers in their own layouts, on small folders, shifted test sets without training pictures, and data
that is referred to where it lies."""

import json
import shutil
from pathlib import Path

import pytest
from accelerate import Accelerator
from PIL import Image
from pydantic import ValidationError

from cones.backbones.clip.settings import ClipModel
from cones.common.errors import DataError, ParamsError
from cones.config.params import parse_method, parse_params
from cones.data.prepared import Split
from cones.readers.aircraft import AircraftData
from cones.readers.folder import FolderData
from cones.readers.imagenet import SHIFTED_SETS, ImageNetData, ImageNetShiftData
from cones.readers.prepare import prepare
from cones.study.cells import Cell, run_cells
from cones.study.pictures import encode_study
from cones.study.settings import Draws


def picture(path: Path, *colour: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 24), colour).save(path)


@pytest.fixture
def aircraft(tmp_path: Path) -> Path:
    """Two variants, one with a space in its name, of two pictures a split each."""
    source = tmp_path / "fgvc_aircraft"
    variants = ["707-320", "Cessna 172"]
    source.mkdir()
    (source / "variants.txt").write_text("\n".join(variants) + "\n")
    number = 0
    for s, split in enumerate(("train", "val", "test")):
        lines = []
        for v, variant in enumerate(variants):
            for i in range(2):
                number += 1
                name = f"{1000000 + number:07d}"
                picture(source / f"images/{name}.jpg", 40 * s, 90 * v, 100 * i)
                lines.append(f"{name} {variant}")
        (source / f"images_variant_{split}.txt").write_text("\n".join(lines) + "\n")
    return source


def test_aircraft_are_read_as_they_are_published(aircraft: Path, tmp_path: Path) -> None:
    report = prepare(AircraftData(kind="fgvc_aircraft", source=str(aircraft)), tmp_path / "p")
    assert report["classes"] == ["707-320", "Cessna 172"]
    assert report["pictures"] == {"train": 4, "val": 4, "test": 4}
    train = Split.open(tmp_path / "p/train")
    assert train.templates == ("a photo of a {}, a type of aircraft.",)
    assert [(r.id, r.label) for r in train.records][-1] == ("1000004.jpg", 1)


AIRCRAFT = {
    "no variants": (lambda s: (s / "variants.txt").unlink(), "has no variants.txt; `source` must be the folder"),
    "no list": (lambda s: (s / "images_variant_val.txt").unlink(), "has no images_variant_val.txt"),
    "another variant": (
        lambda s: (s / "images_variant_val.txt").write_text("1000001 A380\n"), "has the variant `A380`, which"),
    "no picture": (lambda s: (s / "images/1000001.jpg").unlink(), "1000001.jpg"),
    "outside": (lambda s: (s / "images_variant_val.txt").write_text("../../x 707-320\n"), "images_variant_val.txt"),
}  # fmt: skip


@pytest.mark.parametrize("case", AIRCRAFT)
def test_what_aircraft_lack_is_told(case: str, aircraft: Path, tmp_path: Path) -> None:
    change, words = AIRCRAFT[case]
    change(aircraft)
    with pytest.raises(DataError, match=words):
        prepare(AircraftData(kind="fgvc_aircraft", source=str(aircraft)), tmp_path / "p")


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """Three classes, two of one name, as ImageNet has two cranes."""
    source = tmp_path / "imagenet"
    for w, wnid in enumerate(("n01440764", "n02012849", "n03126707")):
        for i in range(5):
            picture(source / f"images/train/{wnid}/{wnid}_{i}.JPEG", 20 * i, 100 * w, 5)
        for i in range(2):
            picture(source / f"images/val/{wnid}/ILSVRC2012_val_{10 * w + i}.JPEG", 20 * i, 100 * w, 200)
    (source / "classnames.txt").write_text("n01440764 tench\nn02012849 crane\nn03126707 crane\n")
    return source


def test_imagenet_tests_on_its_validation_pictures(imagenet: Path, tmp_path: Path) -> None:
    report = prepare(ImageNetData(kind="imagenet", source=str(imagenet)), tmp_path / "p")
    assert report["classes"] == ["tench", "crane n02012849", "crane n03126707"]
    assert report["pictures"] == {"train": 12, "val": 3, "test": 6}
    assert report["divided"] == ["val"]
    test = Split.open(tmp_path / "p/test")
    assert {r.id.split("/")[1][:14] for r in test.records} == {"ILSVRC2012_val"}


IMAGENET = {
    "no names": (lambda s: (s / "classnames.txt").unlink(), "has no classnames.txt; `source` must be Image"),
    "no class": (
        lambda s: (s / "classnames.txt").write_text("n01440764 tench\nn00000001 thing\n"),
        "has no folder n00000001, one of 1 that classnames.txt names"),
    "no pictures": (lambda s: (s / "images/val").rename(s / "elsewhere"), "has no folder n01440764, one of 3"),
    "no name": (lambda s: (s / "classnames.txt").write_text("n01440764\n"), "`n01440764` without a name"),
}  # fmt: skip


@pytest.mark.parametrize("case", IMAGENET)
def test_what_imagenet_lacks_is_told(case: str, imagenet: Path, tmp_path: Path) -> None:
    change, words = IMAGENET[case]
    change(imagenet)
    with pytest.raises(DataError, match=words):
        prepare(ImageNetData(kind="imagenet", source=str(imagenet)), tmp_path / "p")


def test_large_data_is_referred_to(imagenet: Path, tmp_path: Path) -> None:
    config = ImageNetData.model_validate({"kind": "imagenet", "source": str(imagenet), "copy": False})
    prepare(config, tmp_path / "p")
    prepare(ImageNetData(kind="imagenet", source=str(imagenet)), tmp_path / "copied")
    assert not list((tmp_path / "p").rglob("*.JPEG"))
    ours, copies = Split.open(tmp_path / "p/train"), Split.open(tmp_path / "copied/train")
    assert [r.sha256 for r in ours.records] == [r.sha256 for r in copies.records]
    assert all(ours.picture(i).tobytes() == copies.picture(i).tobytes() for i in range(len(ours.records)))
    changed = Path(ours.records[0].file)
    picture(changed, 1, 2, 3)
    with pytest.raises(DataError, match="is damaged"):
        ours.picture(0)
    changed.unlink()
    with pytest.raises(DataError, match="is gone"):
        ours.picture(0)


WNIDS = ("n01440764", "n01498041", "n02012849", "n03126707")
"""Of a tench, a stingray and two cranes."""


def shifted(kind: str, source: Path) -> dict:
    """A small set in its layout; ImageNet-A and -R have the stingray and the second crane. Returns its settings."""
    known = SHIFTED_SETS[kind]
    folders = {w: str(n) if kind == "imagenetv2" else w for n, w in enumerate(WNIDS)}
    for number, wnid in enumerate(WNIDS):
        if known.whole or number % 2:
            for i in range(2):
                picture(source / known.pictures / folders[wnid] / f"{i}.jpg", 60 * i, 60 * number, 90)
    (source / known.pictures / "README.txt").write_text("not a class\n")
    names = ("tench", "stingray", "crane", "crane")
    (source / "classnames.txt").write_text("".join(f"{w} {name}\n" for w, name in zip(WNIDS, names)))
    return {"kind": kind, "source": str(source)}


def prepared_shift(settings: dict, target: Path) -> dict:
    return prepare(ImageNetShiftData.model_validate(settings), target)


@pytest.mark.parametrize("kind", SHIFTED_SETS)
def test_shifted_sets_are_for_tests_alone(kind: str, imagenet: Path, tmp_path: Path) -> None:
    report = prepared_shift(shifted(kind, tmp_path / "shifted"), tmp_path / "p")
    every = ["tench", "stingray", "crane n02012849", "crane n03126707"]
    classes = every if SHIFTED_SETS[kind].whole else every[1::2]
    assert report["classes"] == classes
    assert report["pictures"] == {"train": 0, "val": 0, "test": 2 * len(classes)}
    assert report["divided"] == []
    splits = {name: Split.open(tmp_path / "p" / name) for name in ("train", "val", "test")}
    assert [r.label for r in splits["test"].records] == [i for i in range(len(classes)) for _ in range(2)]
    assert {split.classes for split in splits.values()} == {tuple(classes)}
    assert splits["test"].templates == ("a photo of a {}.",)
    source = prepare(ImageNetData(kind="imagenet", source=str(imagenet)), tmp_path / "imagenet-p")
    assert "crane n03126707" in set(source["classes"]) & set(classes)  # one class has one name in all


@pytest.mark.parametrize("kind", SHIFTED_SETS)
def test_shifted_sets_can_stay_where_they_are(kind: str, tmp_path: Path) -> None:
    settings = shifted(kind, tmp_path / "shifted")
    prepared_shift(settings | {"copy": False}, tmp_path / "p")
    prepared_shift(settings, tmp_path / "copied")
    assert not list((tmp_path / "p").rglob("*.jpg"))
    ours, copies = Split.open(tmp_path / "p/test"), Split.open(tmp_path / "copied/test")
    assert [r.sha256 for r in ours.records] == [r.sha256 for r in copies.records]
    assert ours.picture(1).tobytes() == copies.picture(1).tobytes()
    Path(ours.records[1].file).unlink()
    with pytest.raises(DataError, match="is gone"):
        ours.picture(1)


SHIFTED = {
    "no names": ("imagenet_a", lambda s: (s / "classnames.txt").unlink(), "`source` must be the folder of ImageNet-A"),
    "no pictures": (
        "imagenet_r", lambda s: (s / "imagenet-r").rename(s / "x"), "has no folder imagenet-r; put the pictures of"),
    "another class": (
        "imagenet_a", lambda s: (s / "imagenet-a/n00000001").mkdir(), "`n00000001`, which classnames.txt has no line"),
    "a class lacks": (
        "imagenet_sketch", lambda s: (s / "images" / WNIDS[0]).rename(s / "x"), f"no folder {WNIDS[0]}, one of 1"),
    "a number lacks": (
        "imagenetv2", lambda s: (s / SHIFTED_SETS["imagenetv2"].pictures / "2").rename(s / "x"), "no folder 2, one of"),
    "a line lacks": (
        "imagenetv2", lambda s: (s / "classnames.txt").write_text("n01440764 tench\nn01498041 stingray\n"),
        "has the folder `2`, which"),
    "lines in no order": (
        "imagenetv2", lambda s: (s / "classnames.txt").write_text("n01498041 stingray\nn01440764 tench\n"),
        "must have its ids in their order"),
    "no picture of a class": (
        "imagenet_r", lambda s: [p.unlink() for p in (s / "imagenet-r" / WNIDS[1]).iterdir()],
        "the class `stingray` has no pictures in test"),
}  # fmt: skip


@pytest.mark.parametrize("case", SHIFTED)
def test_what_shifted_sets_lack_is_told(case: str, tmp_path: Path) -> None:
    kind, change, words = SHIFTED[case]
    settings = shifted(kind, tmp_path / "shifted")
    change(tmp_path / "shifted")
    with pytest.raises(DataError, match=words):
        prepared_shift(settings, tmp_path / "p")


def test_nothing_is_learnt_on_a_shifted_set() -> None:
    concept = {"task": "classification", "backbone": "toy", "data": "sketch", "shots": 4}
    study = {"backbone": "toy", "data": "sketch", "shots": [1], "methods": ["coop"]}
    tables = {"backbones": {"toy": {"kind": "clip", "source": "models/backbones/clip-tiny"}},
              "data": {"sketch": {"kind": "imagenet_sketch", "source": "imagenet-sketch"}},
              "concepts": {"few": concept}, "runs": {}, "finetunes": {}, "studies": {"shots": study},
              "transfers": {"shift": {**study, "protocol": "cross_dataset", "targets": ["sketch"]}}}  # fmt: skip
    with pytest.raises(ParamsError) as told:
        parse_params(tables)
    for place in ("concepts.few.data", "studies.shots.data", "transfers.shift.data"):
        words = f"the data `sketch` has test pictures alone (`kind: imagenet_sketch`); learn on another ({place})"
        assert words in str(told.value)


def test_what_is_learnt_on_imagenet_is_tested_on_its_shifts(
    toy_clip: Path, accelerator: Accelerator, tmp_path: Path
) -> None:
    data, source = tmp_path / "prepared", tmp_path / "imagenet"
    for kind in SHIFTED_SETS:
        prepared_shift(shifted(kind, tmp_path / kind), data / kind)
    for number, wnid in enumerate(WNIDS):
        for split, count in (("train", 4), ("val", 1)):
            for i in range(count):
                picture(source / f"images/{split}/{wnid}/{i}.JPEG", 30 * i, 60 * number, 20 * count)
    shutil.copy(tmp_path / "imagenetv2/classnames.txt", source)
    prepare(ImageNetData(kind="imagenet", source=str(source)), data / "imagenet")
    draws = Draws(protocol="domain_generalisation", data="imagenet", targets=[*SHIFTED_SETS], backbone="toy",
                  shots=[1], seeds=1, views=1)  # fmt: skip
    config = ClipModel(kind="clip", source=str(toy_clip))
    pictures = encode_study(draws, config, data / "imagenet", tmp_path / "cache", "cpu", lambda n: None)
    cell = Cell("zero_shot", parse_method({"name": "zero_shot"}), 1, 1, "code")
    (line,) = run_cells([cell], pictures, accelerator, tmp_path / "r.csv")
    names = {"imagenetv2": 4, "imagenet_sketch": 4, "imagenet_a": 2, "imagenet_r": 2}
    for kind, count in names.items():  # each among its own classes
        target = pictures.targets[f"accuracy/{kind}"]
        features = next(target.features.batches(100))
        text = pictures.opened.embed_text(target.names, templates=["a photo of a {}."])
        hits = pictures.opened.predict(features, text).scores.argmax(1) == features.labels
        assert (len(target.names), len(hits)) == (count, 2 * count)
        assert float(line[f"accuracy/{kind}"]) == pytest.approx(hits.double().mean().item(), abs=1e-6)


def test_what_hides_names_is_copied(class_folders: Path) -> None:
    settings = {"kind": "folder", "source": str(class_folders), "copy": False, "group_by": {"pattern": "(.)"}}
    with pytest.raises(ValidationError, match="`copy: false` keeps the paths of pictures, whose names are hidden here"):
        FolderData.model_validate(settings)


def test_the_sets_of_the_papers_have_their_sentences(class_folders: Path, tmp_path: Path) -> None:
    """Nine with CoOp's split files, and two with files of their own."""
    from cones.readers.coop import KNOWN_SETS, CoOpData

    assert len(KNOWN_SETS) == 9
    lines = [[f"{c}/{i}.png", number, c] for number, c in enumerate(("cat", "dog")) for i in range(8)]
    split = {"train": lines[:4] + lines[8:12], "val": lines[4:6] + lines[12:14], "test": lines[6:8] + lines[14:]}
    for name, known in KNOWN_SETS.items():
        source = tmp_path / name
        (source / known.pictures).parent.mkdir(parents=True, exist_ok=True)
        if known.pictures:
            (source / known.pictures).symlink_to(class_folders, target_is_directory=True)
        else:
            source.mkdir(exist_ok=True)
            for c in ("cat", "dog"):
                (source / c).symlink_to(class_folders / c, target_is_directory=True)
        (source / f"split_zhou_{name}.json").write_text(json.dumps(split))
        prepare(CoOpData(kind="coop", source=str(source)), tmp_path / "p" / name)
        assert Split.open(tmp_path / "p" / name / "train").templates == (known.template,)
