"""What the system refuses: one plain line, before the long work begins, and nothing lost."""

import errno
import io
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

import cones.inference.files
from cones.cli.main import app
from cones.common.files import fresh_folder, write_json, write_picture
from cones.common.mapped import mapped_array
from cones.common.process import plain_errors
from cones.common.system_errors import AWAY, FULL, REFUSED
from cones.config.tables import DataConfig
from cones.readers.prepare import prepare

Refusal = Callable[[Callable[[], object]], tuple[int, str]]


@pytest.fixture
def refusal(capsys) -> Refusal:
    """The exit code and the one line that something ends with under `plain_errors`."""

    def ended(work: Callable[[], object]) -> tuple[int, str]:
        with pytest.raises(SystemExit) as left, plain_errors():
            work()
        told = capsys.readouterr().err
        assert told.startswith("error: ")
        assert told.count("\n") == 1
        assert "Traceback" not in told
        return left.value.code, told.strip()

    return ended


def raised(error: BaseException) -> Callable[[], object]:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize("number", [*REFUSED, *FULL, errno.ENOMEM], ids=errno.errorcode.get)
@pytest.mark.parametrize("named", [True, False], ids=["named", "nameless"])
def test_what_the_system_refuses_is_one_line_and_not_tried_again(refusal: Refusal, number: int, named: bool) -> None:
    code, told = refusal(raised(OSError(number, os.strerror(number), *(["searched/x"] if named else []))))
    assert code == 1
    assert ("searched/x" in told) is named
    assert ";" in told, "the next step"
    assert "Errno" not in told


@pytest.mark.parametrize("number", sorted(AWAY), ids=errno.errorcode.get)
def test_a_network_disk_that_is_away_may_come_back(refusal: Refusal, number: int) -> None:
    code, told = refusal(raised(OSError(number, os.strerror(number), "/mnt/data/x.png")))
    assert code == 75
    assert told.startswith("error: /mnt/data/x.png: the network disk or server is away")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "the memory is used up; end other programs"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "the memory is used up"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "the memory is used up"),
        (OSError("image file is truncated\nand more"), "image file is truncated; with CONES_TRACEBACK=1 it shows"),
        (OSError(), "OSError; with CONES_TRACEBACK=1"),
        (OSError(9999, "No such thing", "x"), "x: No such thing; with CONES_TRACEBACK=1"),
        (OSError(errno.EACCES, "no", b"x\xff"), "x\\xff: this user may not"),
        (OSError(errno.ENOSPC, "no", "from", None, "to"), "the disk is full where to is"),
        (OSError(errno.EROFS, "no", "a\x1b[31m\nb"), "a\\x1b[31m"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, BaseException) else "",
)
def test_errors_of_other_kinds_are_told_plainly(capsys, error: BaseException, says: str) -> None:
    with pytest.raises(SystemExit), plain_errors():
        raise error
    told = capsys.readouterr().err
    assert told.startswith(f"error: {says}")
    assert "\x1b" not in told


def test_a_folder_that_is_copied_names_what_could_not_be(refusal: Refusal, tmp_path: Path, small_disk: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from/a").write_bytes(bytes(10**6))
    _, told = refusal(lambda: shutil.copytree(tmp_path / "from", small_disk / "to"))
    assert f"{small_disk}/to/a cannot be copied: " in told
    assert "No space left" in told


def test_a_mistake_in_the_program_keeps_its_traceback_and_any_other_has_one_if_asked(
    capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ZeroDivisionError), plain_errors():
        1 / 0  # noqa: B018
    monkeypatch.setenv("CONES_TRACEBACK", "1")
    with pytest.raises(SystemExit), plain_errors():
        Path("/no/such/file").read_text()
    told = capsys.readouterr().err
    assert told.startswith("Traceback")
    assert told.splitlines()[-1] == (
        "error: /no/such/file: there is no such file or folder; check the name, and where you run this"
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KB."""
    yield from mounted(tmp_path / "small", "size=256k")


@pytest.fixture(scope="module")
def read_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk that cannot be written."""
    yield from mounted(tmp_path_factory.mktemp("disks") / "sealed", "size=64k,ro")


def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk takes root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


FOLDERS = {"predict": ["predict", "x.safetensors", "a.png"], "generate": ["generate", "x.safetensors"]}
FILES = {"export": ["export", "x.safetensors"], "join": ["join", "x.safetensors", "y.safetensors"]}
IN_THE_WAY = {
    "a-file-on-the-way": ("file/out", "file is there and is no folder"),
    "a-circle-of-links": ("circle/out", "circle is there and is no folder"),
    "a-link-to-nowhere-on-the-way": ("nowhere/out", "nowhere is there and is no folder"),
    "not-this-users": ("theirs/out", "this user may not write to"),
    "read-only": ("READ_ONLY/out", "is on a read-only file system"),
    "read-only-below": ("READ_ONLY/a/b/out", "is on a read-only file system"),
}
OBSTACLES = {
    **{f"{c}-{k}": (FOLDERS[c], *v) for c in FOLDERS for k, v in IN_THE_WAY.items()},
    **{f"{c}-{k}": (FILES[c], *v) for c in FILES for k, v in IN_THE_WAY.items()},
    **{f"{c}-a-file": (FOLDERS[c], "file", "file is there and is no folder") for c in FOLDERS},
    **{f"{c}-a-pipe": (FOLDERS[c], "pipe", "pipe is there and is no folder") for c in FOLDERS},
    **{f"{c}-name-too-long": (FOLDERS[c], "a" * 256, "file name too long") for c in FOLDERS},
    **{f"{c}-path-too-long": (FOLDERS[c], "a/" * 2100, "file name too long") for c in FOLDERS},
    "predict-json-is-a-folder": (FOLDERS["predict"], "taken", "predictions.json cannot be written: it is a folder"),
    "predict-pictures-is-a-file": (FOLDERS["predict"], "drawn", "pictures is there and is no folder"),
    "generate-png-is-a-folder": (FOLDERS["generate"], "taken", "00000-003.png cannot be written: it is a folder"),
    **{f"{c}-a-folder": (FILES[c], "taken", "taken cannot be written: it is a folder") for c in FILES},
    **{f"{c}-here": (FILES[c], ".", "it is a folder, and a file is wanted") for c in FILES},
    **{f"{c}-a-pipe": (FILES[c], "pipe", "it is a device or a pipe") for c in FILES},
    **{f"{c}-a-device": (FILES[c], "/dev/null", "it is a device or a pipe") for c in FILES},
    **{f"{c}-name-too-long": (FILES[c], "é" * 128, "file name too long") for c in FILES},
    **{f"{c}-name-too-long-with-what-is-added": (FILES[c], "a" * 250, "file name too long") for c in FILES},
    "join-a-file": (FILES["join"], "file", "file is there already; remove it, or choose another file with --out"),
}


@pytest.fixture
def obstructed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder full of what stands in the way, where no command may begin its work."""
    monkeypatch.chdir(tmp_path)
    for name in ("file", "drawn/pictures"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("as it was")
    for name in ("taken/predictions.json", "taken/00000-003.png", "theirs"):
        Path(name).mkdir(parents=True)
    Path("circle").symlink_to("circle")
    Path("nowhere").symlink_to("gone")
    os.mkfifo("pipe")
    allowed = os.access  # root may write everywhere
    monkeypatch.setattr(os, "access", lambda path, how: Path(path).name != "theirs" and allowed(path, how))
    begun = raised(AssertionError("the work began"))
    monkeypatch.setattr(cones.inference.files, "open_concept", lambda *_: begun())
    return tmp_path


@pytest.mark.parametrize("case", OBSTACLES)
def test_a_command_that_cannot_write_says_so_before_its_work(
    refusal: Refusal, obstructed: Path, request: pytest.FixtureRequest, case: str
) -> None:
    command, out, says = OBSTACLES[case]
    if out.startswith("READ_ONLY"):
        out = out.replace("READ_ONLY", str(request.getfixturevalue("read_only")))
    before = sorted(obstructed.rglob("*"))
    code, told = refusal(lambda: app([*command, "--out", out]))
    assert code == 1
    assert says in told
    assert "--out" in told
    assert len(told) < 500
    assert sorted(obstructed.rglob("*")) == before
    assert Path("file").read_text() == "as it was"


@pytest.mark.parametrize("out", ["found", "a/b/c", "taken/other", "x" * 255, "."])
def test_what_can_be_written_passes(obstructed: Path, out: str) -> None:
    before = sorted(obstructed.rglob("*"))
    with pytest.raises(AssertionError, match="the work began"):
        app([*FOLDERS["generate"], "--out", out])
    assert sorted(obstructed.rglob("*")) == before


def test_new_asks_nothing_where_params_cannot_be_written(
    refusal: Refusal, read_only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(read_only)
    assert "is on a read-only file system" in refusal(lambda: app(["new", "cells"]))[1]


def unreadable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Root may read everything, so the system's call is made to refuse."""
    scan = os.scandir

    def refuse(path: str | Path | int = ".") -> Iterator[os.DirEntry]:
        if os.path.basename(str(path)) == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"kind": "folder", "source": "pictures"}, "pictures/dog: this user may not read or write there"),
        ({"kind": "csv", "source": "pictures", "table": "cat"}, "pictures/cat"),
        ({"kind": "csv", "source": "pictures", "table": "a" * 256}, "is a name that no file has"),
        ({"kind": "coco", "source": "pictures", "annotations": {"train": "cat"}}, "pictures/cat"),
    ],
    ids=["unreadable-folder", "table-is-a-folder", "table-with-a-long-name", "annotations-are-a-folder"],
)
def test_data_that_cannot_be_read_is_named(
    refusal: Refusal, class_folders: Path, monkeypatch: pytest.MonkeyPatch, data: dict, says: str
) -> None:
    monkeypatch.chdir(class_folders.parent)
    if data["kind"] == "folder":
        unreadable(monkeypatch, "dog")
    config = TypeAdapter(DataConfig).validate_python(data)
    code, told = refusal(lambda: prepare(config, Path("prepared")))
    assert code == 1
    assert says in told
    assert not Path("prepared").exists()


def test_a_folder_takes_the_place_of_another_or_leaves_it(tmp_path: Path, refusal: Refusal, monkeypatch) -> None:
    target = tmp_path / "row"
    target.mkdir()
    (target / "old").touch()
    rename = Path.rename

    def busy(path: Path, to: Path) -> Path:
        if to == target and "before" not in path.name:
            raise OSError(errno.EBUSY, "busy", str(path), None, str(to))
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", busy)

    def fill(name: str) -> None:
        with fresh_folder(target) as folder:
            (folder / name).touch()

    assert "another program is using it" in refusal(lambda: fill("new"))[1]
    assert [p.name for p in tmp_path.rglob("*")] == ["row", "old"]
    monkeypatch.undo()
    fill("new")
    assert [p.name for p in tmp_path.rglob("*")] == ["row", "new"]
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file"), fresh_folder(tmp_path / "file"):
        raise AssertionError("the work began")


@pytest.mark.parametrize("name", ["a" * 250, "ü" * 125], ids=["ascii", "umlauts"])
def test_an_error_names_the_file_and_not_what_stands_for_it(refusal: Refusal, tmp_path: Path, name: str) -> None:
    _, told = refusal(lambda: write_json(tmp_path / name, {}))
    assert told.startswith(f"error: {tmp_path / name}: the name is too long")


def test_room_for_a_map_is_reserved_before_it_is_written(refusal: Refusal, small_disk: Path) -> None:
    """Writing into a map of a full disk ends the process by SIGBUS, which no program can tell of."""
    code, told = refusal(lambda: mapped_array(small_disk / "images.npy", np.uint8, (400, 32, 32, 3)))
    assert code == 1
    assert told.startswith(f"error: the disk is full where {small_disk}/images.npy is; free some space")
    small = mapped_array(small_disk / "images.npy", np.uint8, (3, 32, 32, 3))
    small[:] = 7
    small.flush()
    assert np.array_equal(np.load(small_disk / "images.npy"), np.full((3, 32, 32, 3), 7, np.uint8))


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, None], ids=str)
def test_a_disk_that_cannot_reserve_is_written_with_zeros(
    small_disk: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    """As on a platform that has no such call (None)."""
    if number is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", lambda *_: raised(OSError(number, "no"))())
    array = mapped_array(small_disk / "small.npy", np.float16, (5, 3))
    assert not array.any()
    assert np.load(small_disk / "small.npy").shape == (5, 3)
    assert (small_disk / "small.npy").stat().st_size == 128 + 30
    _, told = refusal(lambda: mapped_array(small_disk / "large.npy", np.uint8, (2 * 10**6,)))
    assert told.startswith(f"error: the disk is full where {small_disk}/large.npy is")


def test_a_picture_that_a_disk_cannot_hold_is_refused_and_not_cut_off(small_disk: Path) -> None:
    """Pillow writes the last part of a JPEG without a look at how much of it was taken."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8))
    noise.save(whole := io.BytesIO(), "JPEG", quality=90)
    for room in range(4096, 9 * 4096, 4096):
        for name in ("filler", "x.jpg"):
            (small_disk / name).unlink(missing_ok=True)
        (small_disk / "filler").write_bytes(bytes(256 * 1024 - room))
        fits = len(whole.getvalue()) <= room
        with nullcontext() if fits else pytest.raises(OSError, match="No space left"):
            write_picture(small_disk / "x.jpg", noise, quality=90)
        assert not fits or (small_disk / "x.jpg").read_bytes() == whole.getvalue()
