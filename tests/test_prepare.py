"""The stage that prepares: what it says of its splits, and data that changes while it is read."""

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import cones.data.copying
import cones.data.listing
from cones.common.errors import Changed, DataError
from cones.common.files import fresh_folder
from cones.readers.folder import FolderData
from cones.readers.prepare import prepare

ROOT = Path(__file__).parent.parent
ENTRY = "data:\n  pets: {kind: folder, source: pictures, seed: 3}\nbackbones: {}\nconcepts: {}\nruns: {}\n"


def test_the_stage_says_what_was_divided(
    class_folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(class_folders.parent)
    (class_folders.parent / "params.yaml").write_text(ENTRY)
    Path("stages").symlink_to(ROOT / "stages")
    runpy.run_path("stages/plan.py")["main"]()
    capsys.readouterr()
    runpy.run_path("stages/prepare.py")["main"]("pets")
    assert capsys.readouterr().out == (
        "pets: 2 classes, 8 train, 4 val, 4 test (val and test divided off train by the seed 3); left out: nothing\n"
    )


def test_what_a_killed_process_left_is_removed_whatever_its_name(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    left = tmp_path / f".scan[1].{killed.stdout.strip()}.tmp"
    left.mkdir()
    with fresh_folder(tmp_path / "scan[1]"):
        assert not left.exists()
    assert (tmp_path / "scan[1]").is_dir()


def add(source: Path) -> None:
    Image.new("RGB", (20, 24), "white").save(source / "cat/late.png")


def touch(source: Path) -> None:
    os.utime(source / "cat/0.png", ns=(0, 0))


def remove(source: Path) -> None:
    (source / "cat/0.png").unlink()


@pytest.mark.parametrize(
    ("change", "named"), [(add, "cat/late.png"), (touch, "cat/0.png"), (remove, "cat/0.png"), (None, "")]
)
def test_data_that_changes_while_it_is_read(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable | None, named: str
) -> None:
    """The change comes after the pictures are listed and copied, as one that is being copied there does."""
    copy = cones.data.copying.copy_pictures

    def copy_late(pictures: list, folder: Path) -> list:
        records = copy(pictures, folder)
        if folder.name == "test" and change:
            change(class_folders)
        return records

    monkeypatch.setattr(cones.data.copying, "copy_pictures", copy_late)
    (class_folders / "cat/loop").symlink_to(class_folders)
    config = FolderData(kind="folder", source=str(class_folders))
    if change is None:
        assert prepare(config, tmp_path / "p")["pictures"]["train"] == 8
        return
    with pytest.raises(
        DataError, match=rf"pictures changed while it was prepared \({named}\); try again once"
    ) as error:
        prepare(config, tmp_path / "p")
    assert error.value.may_pass
    assert not (tmp_path / "p").exists()


def cut(source: Path) -> None:
    (source / "cat/0.png").write_bytes((source / "cat/0.png").read_bytes()[:40])


@pytest.mark.parametrize("change", [cut, remove])
@pytest.mark.parametrize("step", ["open_picture", "file_hash", "copy_pictures"])
def test_a_picture_that_changes_before_a_step_reads_it(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable, step: str
) -> None:
    """Whatever the step says of a picture that is gone or half written, that it changed is said instead."""
    door = cones.data.copying if step == "copy_pictures" else cones.data.listing
    read, calls = getattr(door, step), []

    def read_late(*args: object) -> object:
        if not calls:
            change(class_folders)
        calls.append(args)
        return read(*args)

    monkeypatch.setattr(door, step, read_late)
    with pytest.raises(Changed, match=r"pictures changed while it was prepared \(cat/0.png\); try again once"):
        prepare(FolderData(kind="folder", source=str(class_folders)), tmp_path / "p")
    assert calls


def test_a_picture_that_was_always_damaged_is_no_change(class_folders: Path, tmp_path: Path) -> None:
    cut(class_folders)
    with pytest.raises(DataError, match=r"cat/0.png cannot be read as a picture") as refused:
        prepare(FolderData(kind="folder", source=str(class_folders)), tmp_path / "p")
    assert not refused.value.may_pass
