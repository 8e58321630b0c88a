"""Errors of `prepare` name nobody in a log: by pseudonyms, whose keys stay on the machine; on a terminal they do."""

import csv
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image
from test_volume_files import decathlon, study

from cones.common.errors import Changed, ConesError, DataError
from cones.data.concealing import errors_concealed
from cones.data.identity import Pseudonyms
from cones.readers.csv import TableData
from cones.readers.folder import FolderData
from cones.readers.prepare import prepare
from cones.readers.volumes.settings import VolumeData

MARK = "Markerson"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def keys() -> dict[str, str]:
    with Path("data/keys/p.csv").open(newline="") as file:
        return {line["pseudonym"]: line["raw"] for line in csv.DictReader(file)}


def ward(lines: int = 36) -> list[list[str]]:
    """A table of twelve patients with three pictures each, and the pictures."""
    table = [["path", "label", "patient"]]
    for i in range(lines):
        path = f"{MARK}-{i // 3}/{MARK.lower()}_{i % 3}.png"
        Path("s", path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, 2 * i, 7)).save(Path("s", path))
        table.append([path, "ab"[(i // 3) % 2], f"{MARK}, Anna {i // 3}"])
    return table


def written(table: list[list[str]]) -> None:
    with Path("s/labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(table)


def cell(row: int, column: int, value: str) -> Callable[[list[list[str]]], object]:
    return lambda table: table[row].__setitem__(column, value)


def with_splits(value: str) -> Callable[[list[list[str]]], object]:
    def change(table: list[list[str]]) -> None:
        for i, line in enumerate(table):
            line.append("split" if not i else value if i == 1 else ("train", "val", "test")[i // 3 % 3])

    return change


def picture(row: int, content: bytes | None) -> Callable[[list[list[str]]], object]:
    def change(table: list[list[str]]) -> None:
        path = Path("s", table[row][0])
        path.write_bytes(content) if content is not None else path.unlink()

    return change


def same(table: list[list[str]]) -> None:
    shutil.copy(Path("s", table[1][0]), Path("s", table[4][0]))


FAULTS = {
    "no picture": (picture(3, b"x"), r"1 pictures of s cannot be used:\n  - \w{12} cannot be read as a picture", True),
    "not there": (picture(3, None), r"1 pictures of s cannot be used:\n  - (s/)?\w{12} does not exist", True),
    "no group": (cell(3, 2, ""), r"1 of the 36 pictures of s have no group by `patient`: \w{12}; fill it in", True),
    "copies": (same, r"copies of pictures of s cannot be used:\n  - \w{12} and \w{12} are the same picture", True),
    "twice": (cell(2, 0, f"{MARK}-0/{MARK.lower()}_0.png"), r"names `\w{12}` once more", True),
    "two splits": (with_splits("val"), r"12 groups have pictures in more than one .*: \w{12} \(1 in train", True),
    "a split of no name": (with_splits(f"{MARK} 7"), r"why names what stands in it, .* as \w{12} in data/keys/", False),
    "outside": (cell(3, 0, f"../{MARK}.png"), r"s cannot be used; why names what stands in it, so it is kept", False),
    "no label": (cell(3, 1, ""), r"line 4 of s/labels.csv has no label; fill it in", None),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_of_a_table_names_nobody(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pseudonym in it leads back: to a picture or a patient, or to the whole of what was said."""
    spoil, why, listed = FAULTS[fault]
    table = ward()
    spoil(table)
    written(table)
    config = TableData(kind="csv", source="s", group_by="patient")
    with pytest.raises(DataError, match=why) as refused:
        prepare(config, Path("p"))
    assert MARK.lower() not in str(refused.value).lower()
    assert refused.value.__suppress_context__ or listed is None, "or a traceback would name them"
    raw = [keys()[one] for one in re.findall(r"\b[0-9a-f]{12}\b", str(refused.value))]
    assert bool(raw) == (listed is not None)
    names = {line[0] for line in table} | {line[2] for line in table} | {f"{MARK}-0/{MARK.lower()}_0.png"}
    assert all(one in names for one in raw) == (listed is not False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with pytest.raises(DataError) as told:
        prepare(config, Path("p"))
    assert (MARK.lower() in str(told.value).lower()) == (listed is not None)


def test_few_groups_by_a_pattern_are_not_named() -> None:
    for i in range(8):
        path = Path(f"s/{'ab'[i % 2]}/{MARK}{i % 2}-{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, 2 * i, 7)).save(path)
    config = FolderData(kind="folder", source="s", group_by={"pattern": r"(\w+)-"})
    with pytest.raises(DataError, match=r"has 2 groups \(\w{12}, \w{12}\) to divide into 3 splits") as refused:
        prepare(config, Path("p"))
    assert MARK not in str(refused.value)
    assert {f"{MARK}0", f"{MARK}1"} <= set(keys().values())
    alone = FolderData(kind="folder", source="s", val_fraction=0.4, test_fraction=0.4)
    (Path("s/a") / f"{MARK}.png").write_bytes(b"x")
    with pytest.raises(DataError, match=f"{MARK}.png cannot be read"):
        prepare(alone, Path("p"))


def test_what_changed_meanwhile_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    written(ward())
    config = TableData(kind="csv", source="s", group_by="patient")
    listing = TableData.listing

    def meanwhile(self: TableData) -> Any:
        Path(f"s/{MARK}.png").write_bytes(b"x")
        return listing(self)

    monkeypatch.setattr(TableData, "listing", meanwhile)
    with pytest.raises(Changed, match=r"^s changed while it was prepared \(file \w{12}\); try again") as refused:
        prepare(config, Path("p"))
    assert refused.value.may_pass
    assert f"s/{MARK}.png" in keys().values()


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied", f"s/{MARK}-3/markerson_1.png"),
        OSError(f"Expected 4 bytes, got 3 bytes from s/{MARK}-3/markerson_1.png"),
        DataError(f"{MARK}-3/markerson_1.png and markerson_2.png are strange"),
    ],
)
def test_an_error_of_the_system_or_of_a_library_names_nobody(error: Exception) -> None:
    written(ward())
    config, names = TableData(kind="csv", source="s", group_by="patient"), Pseudonyms(b"x")
    with (
        pytest.raises(ConesError, match=rf"\b{names.of(f'{MARK}-3/markerson_1.png')}\b") as refused,
        errors_concealed(config, names, "p"),
    ):
        raise error
    assert MARK.lower() not in str(refused.value).lower()


def test_where_nothing_can_be_looked_at_all_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    import cones.data.concealing

    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder / MARK))

    written(ward())
    monkeypatch.setattr(cones.data.concealing, "files_below", refuse)
    config, names = TableData(kind="csv", source="s", group_by="patient"), Pseudonyms(b"x")
    with (
        pytest.raises(ConesError, match="so it is kept from logs, as") as refused,
        errors_concealed(config, names, "p"),
    ):
        refuse(Path("s"))
    assert MARK not in str(refused.value)
    assert any(f"s/{MARK}" in raw for raw in names.raw.values())


def test_a_number_of_a_message_is_no_name() -> None:
    """Files called 12.png and 3 are not told from counts."""
    for i in range(36):
        path = Path(f"s/{'ab'[i % 2]}/{i}")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, 2 * i, 7)).save(path.with_suffix(".png"))
    config, names = FolderData(kind="folder", source="s", group_by={"pattern": r"(\d+)"}), Pseudonyms(b"x")
    with (
        pytest.raises(DataError, match=r"^12 pictures at 7.5 %: \w{12}, \w{12}; 3 more$"),
        errors_concealed(config, names, "p"),
    ):
        raise DataError("12 pictures at 7.5 %: a/12.png, 13.png; 3 more")
    assert {names.raw[one] for one in names.raw} >= {"a/12.png", "b/13.png"}


# Volumes, whose reader has pseudonyms of its own.


def volumes(**more: object) -> VolumeData:
    return VolumeData.model_validate({"kind": "volumes", "source": "s", "window": "percentile", **more})


def test_files_of_volumes_that_changed_are_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import cones.readers.volumes.write

    study(Path("s"))
    config = volumes(window="lung", least={"mm2": 0, "pixels": 1})
    find = cones.readers.volumes.write.find_scans

    def meanwhile(*args: Any) -> Any:
        os.rename("s/p0/2.dcm", f"s/p0/{MARK}.dcm")
        return find(*args)

    monkeypatch.setattr(cones.readers.volumes.write, "find_scans", meanwhile)
    with pytest.raises(Changed, match=r"^s changed while it was prepared \(file \w{12} and 1 more\)"):
        prepare(config, Path("p"))
    assert "s/p0/2.dcm" in keys().values()


def test_what_libraries_say_of_a_volume_names_nobody() -> None:
    """Neither in an error nor in the report: nibabel names the file that breaks off."""
    decathlon(Path("s"))
    for name in ("imagesTr/case0", "imagesTr/case1"):
        image = nibabel.load(f"s/{name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(np.asanyarray(image.dataobj), image.affine), f"s/{name}.nii")
        os.remove(f"s/{name}.nii.gz")
        os.rename(f"s/{name}.nii", f"s/{name}-{MARK}.nii")
    text = Path("s/dataset.json").read_text()
    for number in (0, 1):
        text = text.replace(f"imagesTr/case{number}.nii.gz", f"imagesTr/case{number}-{MARK}.nii")
    Path("s/dataset.json").write_text(text)
    broken = Path(f"s/imagesTr/case0-{MARK}.nii")
    broken.write_bytes(broken.read_bytes()[:-900])
    with pytest.raises(DataError, match=r"file \w{12} cannot be read as a volume: Expected .* from file") as refused:
        prepare(volumes(), Path("p"))
    assert MARK not in str(refused.value)
    prepare(volumes(unreadable="skip"), Path("p"))
    report = Path("p/report.json").read_text()
    assert "cannot be read as a volume" in report
    assert MARK not in report


def test_a_file_that_a_list_has_outside_is_not_named() -> None:
    decathlon(Path("s"))
    text = Path("s/dataset.json").read_text().replace("imagesTr/case3", f"../{MARK}")
    Path("s/dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"^file \w{12}, which dataset.json names, lies outside s") as refused:
        prepare(volumes(), Path("p"))
    assert MARK not in str(refused.value)
