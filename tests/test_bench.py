"""The benches: the README shows what they found, and the cells of the README's recipe can be cut and prepared."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cones.config import FolderData
from cones.data import prepare

ROOT = Path(__file__).parent.parent
BCCD = ROOT.parent / "shared/data/bccd/BCCD"


def test_the_readme_shows_the_measured_tables() -> None:
    done = subprocess.run(
        [sys.executable, "bench/readme_tables.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["clip_search", "fewshot_glyphs", "fewshot_cells"])
def test_results_say_where_they_come_from(name: str) -> None:
    found = json.loads((ROOT / f"bench/results/{name}.json").read_text())
    assert {"machine", "versions", "commit"} <= set(found)


@pytest.mark.skipif(not BCCD.exists(), reason="the BCCD photographs are not beside the project")
def test_cells_are_cut_and_prepared(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "bench/bccd_crops.py", str(BCCD), str(tmp_path / "cells")],
                          cwd=ROOT, capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.count("1 boxes without area left out") == 2
    report = prepare(FolderData(kind="folder", source=str(tmp_path / "cells")), tmp_path / "prepared")
    assert report["classes"] == ["Platelets", "RBC", "WBC"]
    assert report["pictures"] == {"train": 600, "val": 370, "test": 340}
    assert not report["unreadable"]
