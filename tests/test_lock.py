"""The committed dvc.lock: what it says of outputs is so on this machine, and on every other."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from cones.config.params import load_params
from cones.config.plan import write_plan
from cones.readers.prepare import prepare

ROOT = Path(__file__).parent.parent
COMMITTED = subprocess.run(["git", "show", "HEAD:dvc.lock"], cwd=ROOT, capture_output=True, text=True, check=True)
STAGES = YAML(typ="safe").load(COMMITTED.stdout)["stages"]
ALIKE = ("pretrain-*", "prepare@*")
"""The stages whose outputs have the same bits on every machine."""


def dvc_hash(folder: Path) -> str:
    """A folder as DVC names it."""
    files = sorted((p.relative_to(folder).as_posix(), p.read_bytes()) for p in folder.rglob("*") if p.is_file())
    listing = [{"md5": hashlib.md5(content).hexdigest(), "relpath": name} for name, content in files]
    return f"{hashlib.md5(json.dumps(listing).encode()).hexdigest()}.dir"


def test_it_holds_only_what_is_alike_on_every_machine() -> None:
    """The rest is of whoever runs the pipeline, so that a run in a fresh clone changes no line of it."""
    assert {s for s in STAGES if not s.startswith(tuple(name.removesuffix("*") for name in ALIKE))} == set()
    assert {s for s in STAGES if s.startswith("prepare@")} == {
        f"prepare@{name}" for name in load_params(ROOT / "params.yaml").data
    }
    said = (ROOT / "README.md").read_text()
    assert all(f"`{name}`" in said for name in ALIKE)


@pytest.mark.parametrize("stage", [s for s in STAGES if s.startswith("pretrain-")])
def test_the_committed_backbones_are_those_of_the_lock(stage: str) -> None:
    (output,) = STAGES[stage]["outs"]
    assert dvc_hash(ROOT / output["path"]) == output["md5"]


@pytest.mark.parametrize("stage", [s for s in STAGES if s.startswith("prepare@")])
def test_data_is_prepared_by_the_plan_of_the_lock(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every fresh clone prepares it again and changes the lock."""
    monkeypatch.chdir(ROOT)
    write_plan(load_params(), tmp_path / "plan")
    hashes = {d["path"]: d["md5"] for d in STAGES[stage]["deps"]}
    plan = f"plan/prepare/{stage.removeprefix('prepare@')}.json"
    assert hashlib.md5((tmp_path / plan).read_bytes()).hexdigest() == hashes[plan]


def test_generated_data_has_the_bits_of_the_lock(tmp_path: Path) -> None:
    """The smallest of it: 25 pictures."""
    prepare(load_params(ROOT / "params.yaml").data["zorb"], tmp_path / "zorb")
    (output,) = STAGES["prepare@zorb"]["outs"]
    assert dvc_hash(tmp_path / "zorb") == output["md5"]
