"""Data sets of the papers in their own layouts, on small folders, and data that is referred to where it lies."""

import json
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

from cones.common.errors import DataError
from cones.data.prepared import Split
from cones.readers.aircraft import AircraftData
from cones.readers.folder import FolderData
from cones.readers.imagenet import ImageNetData
from cones.readers.prepare import prepare


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
