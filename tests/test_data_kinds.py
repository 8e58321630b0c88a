"""A kind of data is one file of `cones/readers` and one line of `config/tables.py`, and touches no other kind."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cones.config.code import code_hashes
from cones.config.tables import DATA

ROOT = Path(__file__).parent.parent
LISTS = '''"""Pictures listed in a text file: on each line a class and a path."""

from pathlib import Path
from typing import Literal

from cones.common.reading import read_lines
from cones.data.listing import Listed, Listing, inside
from cones.data.settings import PictureData


class LinesData(PictureData):
    """A folder with a list of its pictures."""

    kind: Literal["lines"]

    def listing(self) -> Listing:
        source = Path(self.source)
        lines = [line.split() for line in read_lines(source / "pictures.txt")]
        classes = sorted({name for name, _ in lines})
        listed = [Listed(path, inside(source, path, "pictures.txt"), classes.index(name)) for name, path in lines]
        return Listing(classes, listed, {})
'''
LINE = '    "cones.readers.lines:LinesData",\n'
TABLES = "data:\n  pets: {kind: folder, source: pictures}\nbackbones: {}\nconcepts: {}\nruns: {}\n"


def run(folder: Path, *arguments: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_kind_is_one_file_and_one_line(class_folders: Path) -> None:
    here = class_folders.parent
    for part in ("cones", "stages"):
        shutil.copytree(ROOT / part, here / part, ignore=shutil.ignore_patterns("__pycache__"))
    (here / "params.yaml").write_text(TABLES)
    run(here, "stages/plan.py")
    before = (here / "plan/prepare/pets.json").read_bytes()

    (here / "cones/readers/lines.py").write_text(LISTS)
    tables = here / "cones/config/tables.py"
    tables.write_text(tables.read_text().replace("DATA = _classes(\n", f"DATA = _classes(\n{LINE}"))
    (here / "params.yaml").write_text(TABLES.replace("data:\n", "data:\n  toy: {kind: lines, source: pictures}\n"))
    pictures = sorted(p.relative_to(class_folders) for p in class_folders.rglob("*.png"))
    (class_folders / "pictures.txt").write_text("".join(f"{p.parent} {p}\n" for p in pictures))
    run(here, "stages/plan.py")
    run(here, "stages/prepare.py", "toy")

    report = json.loads((here / "data/prepared/toy/report.json").read_text())
    assert report["classes"] == ["cat", "dog"]
    assert sum(report["pictures"].values()) == len(pictures)
    assert (here / "plan/prepare/pets.json").read_bytes() == before
    assert "cones/readers/lines.py" in json.loads((here / "plan/prepare/toy.json").read_text())["code"]


OPENS = {"volumes": {"masks", "voc"}}
"""Kinds whose data others may be: medical pictures without volumes, for one."""


@pytest.mark.parametrize("kind", DATA, ids=lambda kind: kind.__name__)
def test_a_kind_is_prepared_by_its_own_reader(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an edit of one reader concerns the data of that kind only."""
    monkeypatch.chdir(ROOT)
    files = code_hashes(Path("stages/prepare.py"), [kind.__module__])
    shared = {"cones/readers/__init__.py", "cones/readers/prepare.py"}
    readers = {f.removesuffix(".py").split("/")[2] for f in files if f.startswith("cones/readers/") and f not in shared}
    own = kind.__module__.split(".")[2]
    assert readers == {own} | OPENS.get(own, set())
    assert not [f for f in files if f.startswith(("cones/tasks", "cones/methods", "cones/backbones"))]
