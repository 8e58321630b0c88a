"""Pictures of one patient stay together: grouped, divided, drawn in turns, refused in two splits, under pseudonyms."""

import csv
import json
import os
import re
import runpy
import shutil
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import chdir
from itertools import pairwise
from pathlib import Path
from typing import Any

import masked
import numpy as np
import pytest
from hostile import LAYOUTS, laid_out
from layouts import coco
from PIL import Image
from pydantic import ValidationError

import cones.data.identity
from cones.cli.main import check
from cones.common.errors import DataError, ParamsError
from cones.common.files import content_hash
from cones.common.planned import read_plan
from cones.config.params import load_params, parse_params
from cones.config.plan import write_plan
from cones.data.copying import list_pictures
from cones.data.groups import in_turns
from cones.data.identity import Pseudonyms, project_salt, pseudonym, write_keys
from cones.data.prepared import SPLITS, Object, Record, Split, records_hash
from cones.data.settings import PictureData
from cones.data.splits import draw_pictures, draw_shots
from cones.readers.csv import TableData
from cones.readers.folder import FolderData
from cones.readers.masks.settings import MaskData
from cones.readers.prepare import prepare
from cones.readers.volumes.world import VolumeWorldData

ROOT = Path(__file__).parent.parent
CLASSES = ("benign", "malignant")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder, where the salt and the keys lie."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person looks on, who is told the names."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)


def dot(path: Path, *colour: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)


def ward(source: Path, patients: dict[str, str], pictures: int = 3, **settings: Any) -> TableData:
    """A table of pictures, some of each patient; `patients` names the class of each, or `both`."""
    lines = ["path,label,patient_id"]
    for number, (patient, label) in enumerate(patients.items()):
        for i in range(pictures):
            shown = CLASSES[i % 2] if label == "both" else label
            dot(source / f"{number}-{i}.png", 10 * number, 10 * i, 7)
            lines.append(f"{number}-{i}.png,{shown},{patient}")
    (source / "labels.csv").write_text("\n".join(lines))
    return TableData(**{"kind": "csv", "source": str(source), "group_by": "patient_id", **settings})


TWELVE = {f"P{i:02}": CLASSES[i % 2] for i in range(12)}


def raw(target: Path) -> dict[str, str]:
    """What each pseudonym of a data set stands for."""
    with Path(f"data/keys/{target.name}.csv").open(newline="") as file:
        return {line["pseudonym"]: line["raw"] for line in csv.DictReader(file)}


def groups(target: Path) -> dict[str, list[str]]:
    """The groups of each split by their names in the data, in the order of its pictures."""
    keys = raw(target)
    return {s: [keys[r.group] for r in Split.open(target / s).records if r.group] for s in SPLITS}


# What groups pictures, in each kind of data


def any_kind(source: Path, kind: str) -> PictureData:
    if kind == "masks":
        return MaskData(kind="masks", source=str(masked.folders(source)), objects="whole")
    if kind == "folder":
        for i in range(12):
            dot(source / CLASSES[i % 2] / f"{i}.png", i, 20, 30)
        return FolderData(kind="folder", source=str(source))
    return laid_out(source, kind)


@pytest.mark.parametrize("kind", [*LAYOUTS, "folder", "masks"])
def test_a_pattern_groups_pictures_of_any_kind(tmp_path: Path, kind: str) -> None:
    (tmp_path / "s").mkdir()
    plain = any_kind(tmp_path / "s", kind)
    grouped = type(plain)(**{**plain.model_dump(exclude_unset=True), "group_by": {"pattern": r"(\d+)(?:\.\w+)?$"}})
    alone, report = prepare(plain, Path("alone")), prepare(grouped, Path("p"))
    assert report["groups"] == report["pictures"] == alone["pictures"]
    assert "groups" not in alone
    stems = {s: {Path(r.id).stem for r in Split.open(Path("p") / s).records} for s in SPLITS}
    assert not [stem for of in stems.values() for stem in of if not re.fullmatch("[0-9a-f]{12}", stem)]
    ids = {Path(raw(Path("p"))[stem]).stem for of in stems.values() for stem in of}
    assert ids == {group for of in groups(Path("p")).values() for group in of}
    assert '"group"' not in "".join(p.read_text() for p in Path("alone").rglob("*.json"))
    assert not Path("data/keys/alone.csv").exists()


def test_a_column_and_a_key_group_pictures(tmp_path: Path) -> None:
    report = prepare(ward(tmp_path / "s", TWELVE), Path("p"))
    assert sum(report["groups"].values()) == 12
    assert {g: n for of in groups(Path("p")).values() for g, n in Counter(of).items()} == dict.fromkeys(TWELVE, 3)

    def owned(table: dict) -> None:
        for picture in table["images"]:
            picture["person"] = picture["id"] // 2 if picture["id"] < 6 else f" {picture['id'] // 2} "

    prepare(coco(tmp_path / "c", owned, group_by="person"), Path("q"))
    assert Counter(g for of in groups(Path("q")).values() for g in of) == dict.fromkeys("0123", 2)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "8 of the 8 pictures of .* have no group by `person`: 0.png, 1.png, .*7.png; fill it in"),
        ("  ", "8 of the 8 pictures"),
        (True, r"the picture 0 of all.json has True at `person`, which `group_by` names; a group is text or a whole"),
        ([1], r"the picture 0 of all.json has \[1\] at"),
        (1.5, "the picture 0 of all.json has 1.5 at"),
    ],
)
@pytest.mark.usefixtures("terminal")
def test_a_key_that_is_no_group(tmp_path: Path, value: object, told: str) -> None:
    def owned(table: dict) -> None:
        for picture in table["images"]:
            picture["person"] = value

    with pytest.raises(DataError, match=told):
        prepare(coco(tmp_path / "c", owned, group_by="person"), Path("q"))


@pytest.mark.usefixtures("terminal")
def test_pictures_without_a_group_are_named(tmp_path: Path) -> None:
    config = ward(tmp_path / "s", {**TWELVE, "": "benign"})
    with pytest.raises(DataError, match=r"^3 of the 39 pictures of .* by `patient_id`: 12-0.png, 12-1.png, 12-2.png; "):
        prepare(config, Path("p"))
    with pytest.raises(
        DataError, match=r"^39 of the 39 .* the pattern \^x\(.\): (\d+-\d.png, ){9}3-0.png and 29 more; "
    ):
        prepare(ward(tmp_path / "s", {**TWELVE, "": "benign"}, group_by={"pattern": "^x(.)"}), Path("p"))
    with pytest.raises(DataError, match=r"^39 of the 39 .* no group by the pattern (.*); change the pattern"):
        prepare(ward(tmp_path / "s", {**TWELVE, "": "benign"}, group_by={"pattern": "(x)?-"}), Path("p"))
    with pytest.raises(DataError, match=r"labels.csv has no column `patent_id`, .*; did you mean `patient_id`\?"):
        prepare(ward(tmp_path / "s", TWELVE, group_by="patent_id"), Path("p"))
    assert not Path("p").exists()


# Settings


COLUMN = "must be the name of a column of the table, {pattern: a regular expression with one group in round brackets}"


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("kind: folder, group_by: patient_id", "`group_by`: must be {pattern: a regular expression with one group in"),
        ("kind: masks, group_by: patient_id", "or none, got 'patient_id' (data.d.group_by)"),
        ("kind: csv, group_by: 3", f"`group_by`: {COLUMN} or none, got 3 (data.d.group_by)"),
        ("kind: csv, group_by: ''", f"{COLUMN} or none, got ''"),
        ("kind: csv, group_by: {pattern: (a), flags: i}", COLUMN),
        ("kind: coco, annotations: a, group_by: [a]", "must be the name of a key of each of the `images`, {pattern"),
        ("kind: folder, group_by: patient", "`group_by`: `patient` is for `kind: volumes`, whose files say whose they"),
        ("kind: voc, group_by: patient", "here it must be {pattern: a regular"),
        ("kind: voc, group_by: {pattern: '(a'}", "`pattern` must be a regular expression: missing ), unterminated"),
        ("kind: voc, group_by: {pattern: 'a'}", "`pattern` must have exactly one group in round brackets, and has 0"),
        ("kind: voc, group_by: {pattern: '(a)(b)'}", "exactly one group in round brackets, and has 2; (?:...) makes"),
        ("kind: voc, group_by: {pattern: 3}", "got {'pattern': 3} (data.d.group_by)"),
        ("kind: subject, group_by: {pattern: (a)}", "unknown key `group_by`"),
        ("kind: world, source: cones/synthetic, vocabulary: novel, group_by: {pattern: (a)}", "unknown key `group_by`"),
    ],
)  # fmt: skip
def test_settings_that_a_kind_cannot_honour(entry: str, told: str) -> None:
    where = "" if "source" in entry else "source: s, "
    Path("params.yaml").write_text(f"backbones: {{}}\ndata:\n  d: {{{where}{entry}}}\nconcepts: {{}}\nruns: {{}}\n")
    with pytest.raises(ParamsError) as refused:
        check()
    assert told in str(refused.value)
    assert "has 1 mistake:" in str(refused.value)


@pytest.mark.parametrize("given", ["none", None, {"pattern": "(?:a|b)(c+)"}, "some_one"])
def test_settings_go_through_the_plan_as_they_are(given: Any) -> None:
    entry = {"kind": "csv", "source": "s", "group_by": given}
    params = parse_params({"backbones": {}, "data": {"d": entry}, "concepts": {}, "runs": {}})
    Path("stages").symlink_to(ROOT / "stages")
    write_plan(params)
    planned = read_plan("prepare", "d").part("data", PictureData)
    assert planned == params.data["d"]
    assert planned.hides_names is (given not in ("none", None))


# Division


def test_whole_groups_are_divided_by_class_and_seed(tmp_path: Path) -> None:
    config = ward(tmp_path / "s", TWELVE)
    report = prepare(config, Path("p"))
    assert report["groups"] == {"train": 8, "val": 2, "test": 2}
    assert report["pictures"] == {"train": 24, "val": 6, "test": 6}
    for patients in groups(Path("p")).values():
        shown = Counter(TWELVE[patient] for patient in set(patients))
        assert shown["benign"] == shown["malignant"]
    prepare(config.model_copy(update={"seed": 1}), Path("q"))
    assert {s: set(g) for s, g in groups(Path("q")).items()} != {s: set(g) for s, g in groups(Path("p")).items()}


def test_the_division_does_not_depend_on_the_salt(tmp_path: Path) -> None:
    config = ward(tmp_path / "s", dict.fromkeys(TWELVE, "both"))
    first, before = prepare(config, Path("p")), groups(Path("p"))
    written = Path("p/train/manifest.json").read_text()
    drawn = draw_shots(Split.open(Path("p/train")), 5, seed=0)
    Path(".cones-salt").unlink()
    second = prepare(config, Path("p"))
    assert groups(Path("p")) == before
    assert Path("p/train/manifest.json").read_text() != written
    assert second["hashes"] == first["hashes"]
    assert draw_shots(Split.open(Path("p/train")), 5, seed=0) == drawn


def test_the_division_does_not_depend_on_the_order_of_the_list(tmp_path: Path) -> None:
    config = ward(tmp_path / "s", TWELVE)
    prepare(config, Path("p"))
    head, *lines = (tmp_path / "s/labels.csv").read_text().splitlines()
    (tmp_path / "s/labels.csv").write_text("\n".join([head, *lines[::-1]]))
    prepare(config, Path("q"))
    assert {s: set(g) for s, g in groups(Path("q")).items()} == {s: set(g) for s, g in groups(Path("p")).items()}


@pytest.mark.usefixtures("terminal")
def test_too_few_groups_are_refused_by_name(tmp_path: Path) -> None:
    config = ward(tmp_path / "s", {"Ann": "both", "Bob": "both"}, pictures=8)
    with pytest.raises(DataError, match=r"has 2 groups \(Ann, Bob\) to divide into 3 splits \(train, val, test\)"):
        prepare(config, Path("p"))
    assert prepare(config.model_copy(update={"group_by": None}), Path("p"))["pictures"]["test"] > 0


def test_a_class_that_whole_groups_leave_a_split_without(tmp_path: Path) -> None:
    config = ward(tmp_path / "s", {"A": "benign", "B": "benign", "C": "benign", "D": "malignant", "E": "malignant"})
    with pytest.raises(
        DataError,
        match=r"`malignant` has no pictures in val of .*; whole groups are divided, and 2 show it: try another",
    ):
        prepare(config, Path("p"))


# One group in two splits


@pytest.mark.usefixtures("terminal")
def test_a_group_in_two_given_splits_is_refused(tmp_path: Path) -> None:
    config = ward(tmp_path / "s", TWELVE)
    lines = (tmp_path / "s/labels.csv").read_text().splitlines()
    split_of = dict(zip(TWELVE, ["train"] * 6 + ["val"] * 2 + ["test"] * 4))
    given = [lines[0] + ",split", *(f"{line},{split_of[line[-3:]]}" for line in lines[1:])]
    (tmp_path / "s/labels.csv").write_text("\n".join(given))
    assert prepare(config, Path("p"))["groups"] == {"train": 6, "val": 2, "test": 4}
    moved = [line.replace(",train", ",test") if line.startswith("0-0") else line for line in given]
    (tmp_path / "s/labels.csv").write_text("\n".join(moved))
    with pytest.raises(
        DataError,
        match=r"^1 groups have pictures in more than one split, .*: P00 \(2 in train, 1 in test\); put all pictures of",
    ):
        prepare(config, Path("q"))
    assert prepare(config.model_copy(update={"group_by": None}), Path("q"))["pictures"]["test"] == 13


PROJECT = """
backbones:
  toy: {{kind: clip, source: {clip}}}
data:
  ward: {{kind: csv, source: source, group_by: patient_id, unreadable: skip, duplicates: keep_first}}
concepts:
  few: {{task: classification, backbone: toy, data: ward, shots: 3, seed: 0}}
runs:
  few-zero-shot: {{concept: few, method: {{name: zero_shot}}}}
  few-coop: {{concept: few, method: {{name: coop, n_ctx: 2, epochs: 2}}}}
"""
ROWS = (("search", "few-zero-shot"), ("search", "few-coop"))
MARK = "Markerson"
"""In all that names a patient: ids, files, suffixes."""


def run_stage(stage: str, *name: str) -> None:
    runpy.run_path(f"stages/{stage}.py")["main"](*name)


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory, toy_clip: Path) -> Path:
    """A project of twelve patients whose stages have run, with pictures that cannot be read or are there twice."""
    folder = tmp_path_factory.mktemp("clinic")
    source, lines = folder / "source", ["path,label,patient_id"]
    for number in range(12):
        for i, label in enumerate(CLASSES * 2):
            name = f"{MARK}-{number}/{MARK.lower()}{number}_{i}.png"
            dot(source / name, 10 * number, 10 * i, 7)
            lines.append(f"{name},{label},{MARK} {number}")
    shutil.copy(source / name, source / f"copy.{MARK[:9]}")
    (source / f"{MARK}.png").write_bytes(b"no picture")
    dot(source / "sheet.png", 1, 2, 3)
    (source / "sheet.png").rename(source / f"0.{MARK[:9]}")
    lines += [f"copy.{MARK[:9]},malignant,{MARK} 11", f"{MARK}.png,benign,{MARK} 3", f"0.{MARK[:9]},benign,{MARK} 0"]
    (source / "labels.csv").write_text("\n".join(lines))
    with chdir(folder):
        Path("stages").symlink_to(ROOT / "stages")
        Path("params.yaml").write_text(PROJECT.format(clip=toy_clip))
        write_plan(load_params())
        for stage, name in (("prepare", "ward"), ("encode", "few"), *ROWS):
            run_stage(stage, name)
        run_stage("evaluate", "few")
        run_stage("report")
    return folder


@pytest.fixture
def copied(clinic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That project, to change; one stands in it."""
    shutil.copytree(clinic, tmp_path / "clinic", symlinks=True)
    monkeypatch.chdir(tmp_path / "clinic")
    return tmp_path / "clinic"


def move_one(source: str, target: str) -> str:
    """Give a picture of a split to a patient of another by hand; the patient."""
    manifests = {s: Path(f"data/prepared/ward/{s}/manifest.json") for s in (source, target)}
    contents = {s: json.loads(path.read_text()) for s, path in manifests.items()}
    patient = contents[source]["records"][0]["group"]
    contents[target]["records"][-1]["group"] = patient
    manifests[target].write_text(json.dumps(contents[target]))
    return patient


def test_a_patient_in_training_and_validation_fails_both_stages(copied: Path) -> None:
    patient = move_one("train", "val")
    for stage in ("encode", "evaluate"):
        with pytest.raises(DataError, match=rf": {patient} \(\d in train, 1 in val\); a manifest is not as it was"):
            run_stage(stage, "few")


def test_a_tested_patient_fails_the_evaluation(copied: Path, opened_pictures: Counter) -> None:
    patient = move_one("train", "test")
    with pytest.raises(
        DataError, match=rf": {patient} \(\d in train, 1 in test\); a manifest is not as it was prepared"
    ):
        run_stage("evaluate", "few")
    patient = move_one("val", "test")
    with pytest.raises(DataError, match=rf"{patient} \(\d in val, 1 in test\)"):
        run_stage("evaluate", "few")
    assert not opened_pictures


def test_evaluation_reads_no_other_pictures_and_of_data_without_groups_no_other_manifest(copied: Path) -> None:
    for split in ("train", "val"):
        shutil.rmtree(f"data/prepared/ward/{split}/pictures")
    shutil.rmtree("evaluated")
    run_stage("evaluate", "few")
    assert Path("evaluated/few/metrics.json").exists()
    shutil.rmtree("data/prepared/ward/val")
    with pytest.raises(DataError, match="ward/val is not prepared"):
        run_stage("evaluate", "few")
    manifest = Path("data/prepared/ward/test/manifest.json")
    content = json.loads(manifest.read_text())
    for record in content["records"]:
        del record["group"]
    manifest.write_text(json.dumps(content))
    run_stage("evaluate", "few")


# Pseudonyms


def written(folder: Path) -> Iterator[tuple[Path, str]]:
    """All that a project's stages wrote, but the keys: names and contents of files."""
    for path in folder.rglob("*"):
        where = path.relative_to(folder).as_posix()
        if not where.startswith(("source", "stages", "params.yaml", "data/keys")) and path.is_file():
            yield path, where + "\n" + path.read_bytes().decode("latin-1")


def test_no_name_of_a_patient_is_in_what_stages_write(clinic: Path) -> None:
    found = {path.relative_to(clinic).as_posix(): text for path, text in written(clinic)}
    assert {"data/prepared/ward/report.json", "evaluated/few/metrics.json", "results/report.html"} <= set(found)
    assert len(found) > 30
    assert [name for name, text in found.items() if MARK.lower() in text.lower()] == []
    report = json.loads((clinic / "data/prepared/ward/report.json").read_text())
    assert [len(report[what]) for what in ("unreadable", "duplicates")] == [1, 1]
    with (clinic / "data/keys/ward.csv").open(newline="") as file:
        keys = {line["pseudonym"]: line["raw"] for line in csv.DictReader(file)}
    assert keys[report["unreadable"][0]].startswith(f"{MARK}.png cannot be read as a picture")
    assert keys[report["duplicates"][0]].startswith(f"copy.{MARK[:9]} is a copy of {MARK}-11/")
    records = [r for s in SPLITS for r in Split.open(clinic / "data/prepared/ward" / s).records]
    assert {keys[r.group] for r in records} == {f"{MARK} {number}" for number in range(12)}
    assert len({keys[r.id] for r in records}) == 49


def test_the_lists_of_objects_name_nobody(tmp_path: Path) -> None:
    for number in range(6):
        masked.draw(tmp_path / f"s/images/{MARK}{number}.jpg", number)
        masked.mask(tmp_path / f"s/masks/{MARK}{number}.png")
        pixels = np.array(Image.open(tmp_path / f"s/masks/{MARK}{number}.png"))
        pixels[-1, -1] = 255
        Image.fromarray(pixels).save(tmp_path / f"s/masks/{MARK}{number}.png")
    masked.mask(tmp_path / f"s/masks/{MARK}-alone.png")
    settings = {"objects": "components", "smallest": 5, "group_by": {"pattern": r"(\d)\.jpg"}}
    report = prepare(MaskData(kind="masks", source=str(tmp_path / "s"), **settings), Path("p"))
    assert [len(report[what]) for what in ("too_small", "not_listed")] == [6, 1]
    for path in Path("p").rglob("*.json"):
        assert MARK not in path.read_text()
    assert raw(Path("p"))[report["not_listed"][0]] == f"masks/{MARK}-alone.png"
    assert re.fullmatch(rf"part \d of masks/{MARK}\d.png: 1 pixels", raw(Path("p"))[report["too_small"][0]])


def test_clipped_objects_name_nobody(tmp_path: Path) -> None:
    def owned(table: dict) -> None:
        for picture in table["images"]:
            picture["person"] = f"{MARK} {picture['id']}"
        table["annotations"][0]["bbox"] = [-5, 3, 10, 8]

    report = prepare(coco(tmp_path / "c", owned, group_by="person"), Path("p"))
    (line,) = report["objects"]["clipped"]
    assert raw(Path("p"))[line].startswith("0.png annotation 100 (cat): box (-5, 3, 5, 11)")
    assert "0.png" not in Path("p/report.json").read_text()
    assert report["objects"]["by_class"]["test"].keys() == {"cat", "dog"}


def test_a_pseudonym_is_the_hmac_of_the_name() -> None:
    """RFC 4231, test case 2."""
    assert pseudonym("what do ya want for nothing?", b"Jefe") == "5bdcc146bf60"
    assert pseudonym("\udce9", b"a") != pseudonym("\udcea", b"a")


def test_two_names_with_one_pseudonym_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cones.data.identity, "DIGITS", 1)
    with pytest.raises(DataError, match=r"^\S+ and \S+ have one pseudonym, [0-9a-f]; rename one of them"):
        prepare(ward(tmp_path / "s", TWELVE), Path("p"))
    assert not Path("p").exists()
    names = Pseudonyms(b"x")
    assert names.of("a") == names.of("a")


def test_the_salt_is_made_once_and_read_by_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        salt, again = project_salt(), project_salt()
        written = write_keys("ward", {"a": "=1+1", "b": "Ünal\udce9"})
    finally:
        os.umask(before)
    assert salt == again
    assert len(salt) == 32
    assert Path(".cones-salt").read_text() == f"{salt.hex()}\n"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (Path(".cones-salt"), written)] == [0o600, 0o600]
    assert written.read_text() == "pseudonym,raw\na,'=1+1\nb,Ünal\\udce9\n"
    assert sorted(p.name for p in tmp_path.rglob("*")) == [".cones-salt", "data", "keys", "ward.csv"]
    assert project_salt(tmp_path / "other") != salt


def test_the_salt_of_who_was_first_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def late(source: Path, target: Path) -> None:
        """Another process writes its salt just before."""
        Path(target).write_text("ab" * 32)
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    assert project_salt() == bytes.fromhex("ab" * 32)
    assert [p.name for p in Path().iterdir()] == [".cones-salt"]


@pytest.mark.parametrize("content", ["", "ab" * 31, "AB" * 32, "xy" * 32, "ab" * 33])
def test_a_malformed_salt_is_refused_and_stays(content: str) -> None:
    Path(".cones-salt").write_text(content)
    with pytest.raises(DataError, match=r"^.cones-salt is no salt, 64 hex digits; put back the one that was there"):
        project_salt()
    assert Path(".cones-salt").read_text() == content


@pytest.mark.parametrize("file", [".gitignore", ".dvcignore"])
def test_salt_and_keys_stay_on_the_machine(file: str) -> None:
    assert {"/.cones-salt", "/data/keys"} <= {line.rstrip("/") for line in (ROOT / file).read_text().splitlines()}


# Manifests and hashes


def test_hashes_know_who_belongs_together_and_not_what_they_are_called() -> None:
    def records(*groups: str | None) -> list[Record]:
        return [Record(str(i), 0, f"f{i}", group=group) for i, group in enumerate(groups)]

    alone = records(None, None, None)
    assert records_hash(alone) == content_hash([(r.sha256, r.label) for r in alone])
    assert records_hash(records("a", "a", "b")) == records_hash(records("y", "y", "x"))
    assert len({records_hash(records(*of)) for of in ("aab", "aba", "aaa", (None,) * 3)}) == 4


# Few shots


def split_of(*shown: tuple[str, str]) -> Split:
    """Pictures by their patient and the classes that they show, each a letter of ab."""
    records = [
        Record(str(i), -1, str(i), "x", tuple(Object("ab".index(c), (0, 0, 1, 1)) for c in of), group=patient or None)
        for i, (patient, of) in enumerate(shown)
    ]
    return Split(Path("toy/train"), ("a", "b"), tuple(records))


PATIENTS = [(patient, shown) for patient in "uvwxyz" for shown in ["a"] * 4 + ["b"] * ("uvwxyz".index(patient) % 3)]


def test_patients_take_turns() -> None:
    picture_of = {"u": [0, 1, 2], "v": [3], "w": [4, 5]}
    groups = [0, 0, 0, 1, 2, 2]
    turns = in_turns([5, 2, 0, 3, 1, 4], groups, np.random.default_rng(0))
    patients = ["u" if i < 3 else "v" if i < 4 else "w" for i in turns]
    assert set(patients[:3]) == set(picture_of)
    assert patients[3:5] == [p for p in patients[:3] if p != "v"]
    assert [i for i in turns if i < 3] == [2, 0, 1]
    orders = {tuple(in_turns(range(6), groups, np.random.default_rng(seed))[:3]) for seed in range(40)}
    assert len(orders) == 6
    assert in_turns([5, 2], [], np.random.default_rng(0)) == [5, 2]


@pytest.mark.parametrize("draw", [draw_shots, draw_pictures])
def test_shots_are_drawn_patient_by_patient_and_nested(draw: Any) -> None:
    split = split_of(*PATIENTS)
    if draw is draw_shots:
        records = [Record(r.id, min(r.labels), r.sha256, group=r.group) for r in split.records]
        split = Split(split.folder, split.classes, tuple(records))
    draws = {shots: draw(split, shots, 3) for shots in range(1, 7)}
    for shots, drawn in draws.items():
        for label, most in ((0, 6), (1, 4)):
            of_class = [split.records[i].group for i in drawn if split.records[i].labels == {label}]
            counts = Counter(of_class)
            assert len(of_class) == shots
            assert len(counts) == min(shots, most), "one of each patient before a second"
            assert max(counts.values()) <= -(-shots // most)
    assert all(set(fewer) < set(more) for fewer, more in pairwise(draws.values()))
    assert draws[4] != draw(split, 4, 4)


@pytest.mark.parametrize("draw", [draw_shots, draw_pictures])
def test_draws_without_groups_are_what_they_were(draw: Any) -> None:
    """Numbers of the code before there were groups."""
    split = split_of(*(("", shown) for _, shown in PATIENTS))
    if draw is draw_shots:
        split = Split(split.folder, split.classes, tuple(Record(r.id, min(r.labels), r.sha256) for r in split.records))
    assert draw(split, 3, 3) == DRAWN[draw.__name__]


DRAWN = {"draw_shots": [16, 15, 18, 13, 14, 8], "draw_pictures": [23, 26, 28, 20, 13, 3]}


def test_the_stage_says_how_many_groups_there_are(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    ward(tmp_path / "source", TWELVE)
    Path("stages").symlink_to(ROOT / "stages")
    entry = "{kind: csv, source: source, group_by: patient_id, val_fraction: 0.1, test_fraction: 0.1, seed: 3}"
    Path("params.yaml").write_text(f"backbones: {{}}\ndata:\n  ward: {entry}\nconcepts: {{}}\nruns: {{}}\n")
    write_plan(load_params())
    run_stage("prepare", "ward")
    told = "ward: 2 classes, 24 train (8 groups), 6 val (2 groups), 6 test (2 groups) (val and test divided off train"
    assert capsys.readouterr().out.startswith(told)
    assert list_pictures(load_params().data["ward"]).pictures[0].group == "P00"


def test_scans_of_one_patient_stay_together_unless_told_otherwise(tmp_path: Path) -> None:
    settings = {"kind": "volume_world", "form": "dicom", "patients": 4, "scans": 2, "lesions": 2, "side": 96,
                "depth": 16, "labels": {1: "solid nodule"}, "window": "lung", "slices": {"choose": "all"}}  # fmt: skip
    kept = prepare(VolumeWorldData(**settings), tmp_path / "kept")
    assert kept["volumes"] == {"train": 4, "val": 2, "test": 2}
    assert kept["groups"] == {"train": 2, "val": 1, "test": 1}
    loose = prepare(VolumeWorldData(**settings, group_by=None), tmp_path / "loose")
    assert sum(loose["groups"].values()) == sum(loose["volumes"].values()) == 8
    with pytest.raises(DataError, match=r"no lesion has room in patient 0 of the 4; make `radius` smaller"):
        prepare(VolumeWorldData(**settings, radius=[60, 70]), tmp_path / "none")
    with pytest.raises(ValidationError, match=r"`scans` of one patient need `form: dicom`"):
        VolumeWorldData(**{**settings, "form": "nifti"})
    with pytest.raises(ValidationError, match=r"`radius` must be \[least, largest\] in mm"):
        VolumeWorldData(**settings, radius=[30, 20])
