"""The benches: the README shows what they found, a rung of the ladder changes one thing, a grid of rates is widened,
what was measured is kept, and the cells of the README's recipe can be cut and prepared."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import common
import pytest
from common import best_rate, kept
from pydantic import BaseModel
from t2i_rungs import Recipe, Rung, changed, ladder, settings_of

from cones.config.params import parse_method
from cones.readers.folder import FolderData
from cones.readers.prepare import prepare

ROOT = Path(__file__).parent.parent

RUNGS = {rung.name: rung for rung in ladder()}
BCCD = ROOT.parent / "shared/data/bccd/BCCD"


def test_the_readme_shows_the_measured_tables() -> None:
    done = subprocess.run(
        [sys.executable, "bench/readme_tables.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("bench", sorted(path.stem for path in (ROOT / "bench").glob("*.py")))
def test_a_bench_finds_what_it_imports(bench: str) -> None:
    importlib.import_module(bench)


@pytest.mark.parametrize("name", ["clip_search", "fewshot_glyphs", "fewshot_cells", "upt_analysis"])
def test_results_say_where_they_come_from(name: str) -> None:
    found = json.loads((ROOT / f"bench/results/{name}.json").read_text())
    assert {"machine", "versions", "commit"} <= set(found)


@pytest.mark.parametrize("path", sorted((ROOT / "bench/results").glob("*_gpu.json")), ids=lambda path: path.stem)
def test_results_of_a_gpu_name_it(path: Path) -> None:
    found = json.loads(path.read_text())
    assert {"gpu", "gpu_memory_mb", "cuda"} <= set(found["machine"])
    assert {"torch", "transformers"} <= set(found["versions"])
    assert len(found["commit"]) >= 7


def test_results_have_a_name_of_their_own_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    for about in ({}, {"gpu": "a card"}):
        monkeypatch.setattr(common, "card", lambda about=about: about)
        common.write_results("steps", {"seconds": 1.5})
    one, other = (json.loads((tmp_path / name).read_text()) for name in ("steps.json", "steps_gpu.json"))
    assert other["machine"] == one["machine"] | {"gpu": "a card"}


@pytest.mark.skipif(not BCCD.exists(), reason="the BCCD photographs are not beside the project")
def test_cells_are_cut_and_prepared(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "bench/bccd_crops.py", str(BCCD), str(tmp_path / "cells")],
                          cwd=ROOT, capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.count("1 boxes without area left out") == 2
    report = prepare(FolderData(kind="folder", source=str(tmp_path / "cells")), tmp_path / "prepared")
    assert report["classes"] == ["Platelets", "RBC", "WBC"]
    assert report["pictures"] == {"train": 600, "val": 370, "test": 340}
    assert not report["unreadable"]


@pytest.mark.parametrize("rung", list(RUNGS.values())[1:], ids=list(RUNGS)[1:])
def test_a_rung_changes_one_thing_of_the_one_it_stands_after(rung: Rung) -> None:
    assert rung.after in list(RUNGS)[: list(RUNGS).index(rung.name)]
    assert len(changed(rung, RUNGS[rung.after])) == 1
    assert rung.changes


def settings(recipe: Recipe) -> BaseModel:
    return parse_method(settings_of(recipe, 0.01, 600, 10))


@pytest.mark.parametrize(
    ("name", "differ"),
    [
        ("+one_batch", {"accumulate"}),
        ("+two_vectors", {"n_tokens"}),
        ("cones_low_variance", {"noise"}),
        ("cones_warm_start", {"init"}),
    ],
)
def test_so_does_what_the_library_is_told(name: str, differ: set[str]) -> None:
    ours, before = (settings(r.recipe).model_dump() for r in (RUNGS[name], RUNGS[RUNGS[name].after or ""]))
    assert {field for field in ours if ours[field] != before[field]} == differ


@pytest.mark.parametrize(("inversion", "cones"), [("+one_batch", "cones_one_vector"), ("+two_vectors", "cones")])
def test_where_the_encoder_is_dropped_the_loop_and_the_numbers_searched_are_the_same(
    inversion: str, cones: str
) -> None:
    with_encoder, without = (settings(RUNGS[name].recipe).model_dump() for name in (inversion, cones))
    shared = set(with_encoder) & set(without) - {"name"}
    assert {"n_tokens", "weight_decay", "batch_size", "accumulate", "epochs", "validate_every", "noise"} <= shared
    assert {f: with_encoder[f] for f in shared} == {f: without[f] for f in shared}


def test_the_measured_ladder_is_that_of_the_rungs() -> None:
    found = json.loads((ROOT / "bench/results/t2i.json").read_text())
    told = [(line["name"], line["after"], line["changes"]) for line in found["ladder"]]
    assert told == [(rung.name, rung.after, rung.changes) for rung in RUNGS.values()]


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (4.0, [1, 4, 16, 64, 256, 1024]),
        (1024.0, [1, 4, 16, 64, 256, 1024, 4096]),
        (1 / 4, [1 / 16, 1 / 4, 1, 4, 16, 64, 256, 1024]),
        (1e9, [4.0**i for i in range(10)]),
    ],
    ids=["inside", "above", "below", "bounded"],
)
def test_a_grid_is_widened_until_the_best_rate_is_inside(best: float, tried: list[float]) -> None:
    rate, judged = best_rate(1.0, lambda rate: abs(rate - best))
    assert list(judged) == tried
    assert rate == min(tried, key=lambda r: abs(r - best))


def test_what_was_measured_is_measured_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def measure() -> dict[str, float]:
        calls.append(1)
        return {"seconds": 0.1 + 0.2}

    assert [kept(tmp_path / "a/line.json", measure) for _ in range(2)] == [{"seconds": 0.1 + 0.2}] * 2
    assert len(calls) == 1
