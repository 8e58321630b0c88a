"""Pictures as medical data, `layout: pictures`: what the kinds of pictures read, without what tells of a person."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import ValidationError
from test_volume_files import REAL

from cones.common.errors import DataError
from cones.data.copying import write_listed
from cones.data.masks import object_mask
from cones.data.pictures import open_picture
from cones.data.prepared import SPLITS, Record, Split
from cones.data.settings import PictureData
from cones.readers.masks.settings import MaskData
from cones.readers.prepare import prepare
from cones.readers.voc import VocData
from cones.readers.volumes.settings import VolumeData

real = pytest.mark.skipif(not (REAL / "bccd").is_dir(), reason="the real data is not here")
BLOOD, NUCLEI = REAL / "bccd/BCCD", REAL / "nuclei_dsb2018/stage1_train"


def pictures(source: Path, **more: object) -> VolumeData:
    return VolumeData.model_validate(
        {"kind": "volumes", "layout": "pictures", "source": str(source), "group_by": "none", **more}
    )


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def prepared(config: VolumeData) -> tuple[dict[str, dict[str, Record]], dict]:
    """The records of each split by the names of the pictures, and the report."""
    report = prepare(config, Path("out"))
    with Path("data/keys/out.csv").open(newline="") as file:
        raw = {line["pseudonym"]: line["raw"] for line in csv.DictReader(file)}
    splits = {split: Split.open(Path("out", split)) for split in SPLITS}
    return {split: {raw[r.id]: r for r in of.records} for split, of in splits.items()}, report


def written(plain: PictureData) -> dict[str, dict[str, Record]]:
    _, records, _ = write_listed(plain, Path("expected"))
    return {split: {r.id: r for r in of} for split, of in records.items()}


@real
def test_real_blood_cells_are_as_voc_has_them() -> None:
    plain = VocData.model_validate({"kind": "voc", "source": str(BLOOD)})
    (found, report), expected = prepared(pictures(BLOOD)), written(plain)
    assert report["classes"] == ["Platelets", "RBC", "WBC"]
    assert {split: len(of) for split, of in found.items()} == {"train": 205, "val": 87, "test": 72}
    for split, of in expected.items():
        assert {name: r.objects for name, r in found[split].items()} == {name: r.objects for name, r in of.items()}
    assert len(report["objects"]["zero_area"]) == 2
    name, record = next(iter(found["test"].items()))
    mine, its = open_picture(Path("out/test", record.file)), open_picture(BLOOD / f"JPEGImages/{name}.jpg")
    assert np.array_equal(np.asarray(mine), np.asarray(its))


@real
def test_real_nuclei_are_a_lesion_a_mask() -> None:
    config = pictures(NUCLEI, labels={255: "nucleus"})
    plain = MaskData.model_validate(
        {"kind": "masks", "source": str(NUCLEI), "objects": "whole", "smallest": 16, "values": [255],
         "classes": ["nucleus"]}
    )  # fmt: skip
    (found, _), expected = prepared(config), written(plain)
    for split, of in expected.items():
        assert {name: r.objects for name, r in found[split].items()} == {name: r.objects for name, r in of.items()}
    assert sum(len(r.objects or ()) for of in found.values() for r in of.values()) == 4980


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Six pictures of three patients with masks of the value 7 in 8 x 6 and in 3 x 3 pixels."""
    rng = np.random.default_rng(0)
    for number in range(6):
        told = PngInfo()
        told.add_text("Description", f"MARK{number}")
        mask = np.zeros((32, 40), np.uint8)
        mask[4:10, 6:14] = 7
        mask[20:23, 20:23] = 7
        for folder, array in (("images", rng.integers(0, 255, (32, 40), np.uint8)), ("masks", mask)):
            (tmp_path / "raw" / folder).mkdir(parents=True, exist_ok=True)
            path = tmp_path / f"raw/{folder}/NAME{number // 2}-{number}.png"
            Image.fromarray(array).save(path, pnginfo=told)
    return tmp_path / "raw"


def test_nothing_but_pixels_is_kept_of_a_picture(source: Path) -> None:
    found, report = prepared(pictures(source, labels={7: "polyp"}, group_by={"pattern": "NAME([0-9]+)"}))
    assert report["groups"] == {"train": 1, "val": 1, "test": 1}
    files = [path for path in Path("out").rglob("*") if path.is_file()]
    assert len(files) > 6
    for path in files:
        content = path.read_bytes()
        assert not [mark for mark in (b"MARK", b"NAME") if mark in content], path
    for split, of in found.items():
        assert len(of) == 2
        for name, record in of.items():
            mine, its = open_picture(Path("out", split, record.file)), open_picture(source / name)
            assert np.array_equal(np.asarray(mine), np.asarray(its))
            (polyp,) = record.objects or ()
            assert polyp.box == (6.0, 4.0, 14.0, 10.0)
    assert len(report["too_small"]) == 6


def test_each_value_can_be_a_lesion(source: Path) -> None:
    found, _ = prepared(pictures(source, labels={1: "polyp"}, instances="values", least={"pixels": 1}))
    (whole,) = next(iter(found["test"].values())).objects or ()
    assert object_mask(whole, (32, 40)).sum() == 48 + 9


def test_a_table_groups_pictures(source: Path) -> None:
    lines = [f"images/NAME{number // 2}-{number}.png,{'abc'[number % 3]}" for number in range(6)]
    (source / "patients.csv").write_text("\n".join(["case,patient id", *lines]))
    found, _ = prepared(pictures(source, labels={7: "polyp"}, group_by="patient id"))
    numbers = {split: sorted(int(name[-5]) for name in of) for split, of in found.items()}
    assert sorted(numbers.values()) == [[0, 3], [1, 4], [2, 5]]
    (source / "patients.csv").write_text("\n".join(["case,patient id", *lines[1:]]))
    with pytest.raises(DataError, match=r"1 of the 6 pictures of .* have no group by `patient id`") as refusal:
        prepare(pictures(source, labels={7: "polyp"}, group_by="patient id"), Path("again"))
    assert "NAME" not in str(refusal.value)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"labels": {7: "polyp"}, "group_by": "patient"}, "do not say whose they are; set `group_by: {pattern"),
        ({}, "do not say what they mark; set `labels`"),
        ({"labels": {3: "polyp"}}, "has the value 7, which is not in `labels`; add it there$"),
    ],
)
def test_pictures_that_cannot_be_read_are_refused(source: Path, more: dict, why: str) -> None:
    with pytest.raises(DataError, match=why) as refusal:
        prepare(pictures(source, **more), Path("out"))
    assert "NAME" not in str(refusal.value)


def test_folders_of_other_names_are_refused(source: Path) -> None:
    config = pictures(source, labels={7: "polyp"})
    (source / "images").rename(source / "scans")
    with pytest.raises(DataError, match="holds pictures and no folder `images`; move them into one"):
        config.listing()
    for folder in ("masks", "scans"):
        shutil.rmtree(source / folder)
    with pytest.raises(DataError, match=r"nor a folder images, .* set the `kind` masks, which takes folders of other"):
        prepare(config, Path("out"))


@pytest.mark.parametrize("setting", [{"window": "lung"}, {"slices": {"stride": 5}}, {"crop": "body"}])
def test_settings_of_volumes_are_refused(source: Path, setting: dict) -> None:
    name = next(iter(setting))
    with pytest.raises(ValidationError, match=f"`{name}` is for volumes, and `layout: pictures` has none"):
        pictures(source, **setting)
    everything = pictures(source).model_dump(mode="json", by_alias=True)
    assert VolumeData.model_validate(everything) == pictures(source), "as a plan has it"
