"""Caches: pictures are opened once, what is kept is what was written and what today's code makes, and is read once."""

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import cones.common.kept
import cones.data
from cones.backbones.clip.settings import ClipModel
from cones.cli.damage import damaged_encoded, damaged_kept
from cones.common.errors import DataError
from cones.common.files import file_hash
from cones.common.kept import CODE, SEAL, kept
from cones.config.code import code_hashes
from cones.config.params import parse_method
from cones.config.tables import FINETUNE_KINDS, RunConfig
from cones.features.encoded import Encoded
from cones.features.store import write_features
from cones.finetuning.settings import keeps_features
from cones.readers.prepare import prepare
from cones.readers.world import WorldData
from cones.results.evaluate import evaluate_rows
from cones.search.row import search_row
from cones.tasks.classification.settings import ClassificationConcept
from cones.tasks.encode import draw, encode_concept

ROOT = Path(__file__).parent.parent

GLYPHS = WorldData(kind="world", vocabulary="novel", size=32, train=4, val=3, test=3)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[Path]:
    """How often each file was read to be hashed."""
    counts: Counter[Path] = Counter()

    def counting(path: Path) -> str:
        counts[path.resolve()] += 1
        return file_hash(path)

    monkeypatch.setattr("cones.common.files.file_hash", counting)
    return counts


@pytest.fixture
def copied(encoded: Encoded, tmp_path: Path) -> Path:
    return shutil.copytree(encoded.folder, tmp_path / "encoded/few")


def test_a_picture_is_opened_once_for_all_its_views_and_features_are_hashed_once(
    toy_clip: Path, tmp_path: Path, opened_pictures: Counter, read: Counter[Path]
) -> None:
    prepare(GLYPHS, tmp_path / "prepared")
    concept = ClassificationConcept(task="classification", backbone="toy", data="glyphs", shots=2, val_shots=1, views=4)
    drawn = draw(concept, tmp_path / "prepared")
    backbone = ClipModel(kind="clip", source=str(toy_clip))
    encoded = encode_concept("few", concept, backbone, drawn, tmp_path / "few")
    assert opened_pictures == {("train", i): 1 for i in drawn.shown} | {("val", i): 1 for i in drawn.held}
    ours = {path.parent.name: n for path, n in read.items() if path.name == "image.npy"}
    assert ours == {"train": 1, "val": 1}
    assert encoded.train.views == 4


def test_views_of_a_batch_are_encoded_before_the_next_batch_is_opened(tmp_path: Path) -> None:
    done: list[tuple] = []

    def open_pictures(rows) -> Callable[[int], dict[str, torch.Tensor]]:
        done.append(("open", *rows))

        def encode(view: int) -> dict[str, torch.Tensor]:
            done.append((view, *rows))
            return {"x": torch.tensor([[10.0 * row + view] for row in rows])}

        return encode

    store = write_features(tmp_path / "x", ["a", "b", "c"], [0, 0, 0], 2, open_pictures, 2)
    assert done == [("open", 0, 1), (0, 0, 1), (1, 0, 1), ("open", 2), (0, 2), (1, 2)]
    assert store.arrays["x"][..., 0].tolist() == [[0, 1], [10, 11], [20, 21]]


def test_features_are_hashed_once_and_not_for_every_row(copied: Path, read: Counter[Path]) -> None:
    Encoded.open(copied)
    hashed = {path for path in read if copied in path.parents}
    assert {path.relative_to(copied).parts[0] for path in hashed} == {"train", "val", "text.safetensors"}
    read.clear()
    Encoded.open(copied)
    assert not read


def altered(path: Path) -> None:
    """Swap the first and the last number of an array, with the file's size and time as before."""
    before = path.stat()
    array = np.load(path, mmap_mode="r+").reshape(-1)
    array[0], array[-1] = float(array[-1]), float(array[0])
    array.flush()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def replaced(path: Path) -> None:
    """Another file in its place."""
    path.with_name("other").write_bytes(b"x" * path.stat().st_size)
    path.with_name("other").rename(path)


@pytest.mark.parametrize("damage", [altered, replaced, Path.unlink, lambda p: p.with_name("more").touch()])
def test_features_that_were_sound_and_were_damaged_since_are_refused(copied: Path, damage: Callable) -> None:
    Encoded.open(copied)
    damage(copied / "train/image.npy")
    for _ in range(2):
        with pytest.raises(DataError, match=r"few/train is damaged: it is not what was written"):
            Encoded.open(copied)


@pytest.mark.parametrize("content", ["", "[]", '{"train": 1}', '{"train": {"sha256": "0", "files": {}}}'])
def test_a_note_that_says_nothing_is_worthless(copied: Path, read: Counter[Path], content: str) -> None:
    Encoded.open(copied)
    (copied / "verified.json").write_text(content)
    read.clear()
    Encoded.open(copied)
    assert any(path.name == "image.npy" for path in read)


@pytest.fixture
def judged(toy_clip: Path, encoded: Encoded, accelerator, tmp_path: Path) -> Callable[[], list[float]]:
    """The probabilities that a row gives test pictures, by the features that are kept in `tmp_path/cache`."""
    prepare(GLYPHS, tmp_path / "prepared")
    run = RunConfig(concept="few", method=parse_method({"name": "zero_shot"}))
    search_row("zero", run, encoded, accelerator).concept.save(tmp_path / "concept.safetensors")

    def evaluate() -> list[float]:
        paths = {"zero": tmp_path / "concept.safetensors"}
        found = evaluate_rows(paths, tmp_path / "prepared/test", tmp_path / "cache")["zero"]
        return torch.cat([p.scores for p in found.predictions]).flatten().tolist()

    return evaluate


def test_kept_features_of_test_pictures_are_not_believed_as_they_lie(judged, tmp_path: Path, capsys) -> None:
    right = judged()
    path = next((tmp_path / "cache").rglob("image.npy"))
    np.save(path, np.load(path)[::-1])
    assert judged() == right
    told = capsys.readouterr().err
    assert told.startswith(f"{tmp_path}/cache/test-features/")
    assert "is damaged (features); it is removed and made again" in told
    assert judged() == right
    assert not capsys.readouterr().err


def test_the_doctor_reads_what_is_kept_and_what_is_encoded(judged, tmp_path: Path, copied: Path) -> None:
    judged()
    Encoded.open(copied)
    kinds = [str(tmp_path / "cache" / kind) for kind in cones.common.kept.KINDS]
    assert [(f.what, f.well) for f in damaged_kept(tmp_path / "cache")] == [(kind, True) for kind in kinds]
    assert [f.well for f in damaged_encoded(copied.parent)] == [True]
    entry = next((tmp_path / "cache/test-features").glob("*/"))
    for array in (entry / "features/image.npy", copied / "train/image.npy"):
        altered(array)
    (tmp_path / "cache/text-maps").mkdir()
    (tmp_path / "cache/text-maps/0.safetensors").write_bytes(b"of an older version")
    found = list(damaged_kept(tmp_path / "cache"))
    assert [f.well for f in found] == [False, None, True, True]
    assert found[0].found == f"{entry} is damaged (features)"
    assert found[0].to_do == f"rm -rf {entry}; it is made again when it is needed"
    [finding] = damaged_encoded(copied.parent)
    assert finding.to_do == f"rm -rf {copied}/train && dvc repro"


def test_what_is_kept_is_made_once_by_code_that_is_the_same(tmp_path: Path, monkeypatch) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "x").write_text("x")

    folder = kept("text-maps", ["a", 1], tmp_path, make)
    assert (folder / "x").read_text() == "x"
    os.utime(folder, (0, 0))
    assert kept("text-maps", ["a", 1], tmp_path, make) == folder
    assert len(made) == 1
    assert folder.stat().st_mtime > 0, "nobody would know that it is in use"
    assert kept("text-maps", ["a", 2], tmp_path, make) != folder
    (folder / SEAL).unlink()
    assert kept("text-maps", ["a", 1], tmp_path, make) == folder
    assert len(made) == 3
    package = shutil.copytree(
        ROOT / "cones", tmp_path / "cones", ignore=shutil.ignore_patterns("__pycache__", "builtin")
    )
    monkeypatch.setattr("cones.common.kept.__file__", str(package / "common/kept.py"))
    assert kept("text-maps", ["a", 1], tmp_path, make) == folder
    (package / "backbones/tuned.py").write_text("")
    assert kept("text-maps", ["a", 1], tmp_path, make) != folder
    assert len(made) == 4


def test_what_was_not_made_to_its_end_is_not_kept(tmp_path: Path) -> None:
    def stop(folder: Path) -> None:
        (folder / "x").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept("text-maps", [], tmp_path, stop)
    assert [p.suffix for p in (tmp_path / "text-maps").iterdir()] == [".lock"]


def test_what_is_kept_knows_all_the_code_that_makes_it() -> None:
    """A module that a maker begins to import is listed, unless it only describes, stores, reads bytes or settings."""
    package = ROOT / "cones"
    makers = ("features/views.py", "methods/warmstart.py", "finetuning/class_pictures.py", "backbones/__init__.py")
    kinds = [f"cones.backbones.{kind}.settings" for kind in ("clip", "glip", "sd")]
    decide = {file for maker in makers for file in code_hashes(package / maker, kinds)}
    # They describe, store and refuse, or are the Concept and settings that are given to them.
    aside = ("cones/concept/", "cones/data/", "cones/tasks/", "cones/visuals/", "cones/methods/searched.py")
    decide = {f for f in decide if not f.startswith(aside) and not f.endswith("__init__.py")}
    decide |= {"cones/data/pictures.py", "cones/data/prepared.py", "cones/tasks/detection/encode.py"}
    listed = {pattern: {p.relative_to(ROOT).as_posix() for p in package.glob(pattern)} for pattern in CODE}
    assert all(listed.values())
    assert decide - set().union(*listed.values()) == set()


@pytest.mark.parametrize("kind", FINETUNE_KINDS)
def test_each_kind_of_fine_tuning_says_whether_kept_features_hold(kind: str) -> None:
    """They do not where it trains what encodes pictures."""
    parts = {"full": ("backbone", "neck", "bbox_head", "mask_head")}.get(kind, ())
    assert keeps_features(kind, "grounding") == (not {"backbone", "neck"} & set(parts))
    assert not keeps_features(kind, "dual_encoder")
