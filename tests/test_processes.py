"""Several processes that share the steps of a row: the same result as of one with so many times the batch."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from finetunes import Bench
from generations import NOISE, Studio
from sharing import run_row

from cones.config.params import parse_method
from cones.features.encoded import Encoded
from cones.methods.searched import Row
from cones.search.row import search_row

NEARER = 100
"""Times that the result of two processes is nearer to that of one with twice the batch than to that of one with the
same, in the norm of all numbers that train."""
LOSS = 1e-5
"""Relative difference of training losses."""
STEPS = {"steps": 4, "batch_size": 3, "validate_every": 2}
LIVE = {"epochs": 2, "batch_size": 8, "patience": None, "lr": 0.02}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("few", {"kind": "lora", "rank": 2, "lr": 0.01, "dropout": 0.0, **STEPS}),
    "full": ("few", {"kind": "full", "lr": 0.001, **STEPS}),
    "upt": ("few", {"name": "upt", **LIVE}),
    "auto": ("few", {"name": "vpt_shallow", **LIVE, "lr": "auto"}),
    "dreambooth": (
        "zorb",
        {"kind": "dreambooth", "prior_pictures": 2, "lr": 0.001, "noise": NOISE, **STEPS, "batch_size": 1},
    ),
    "detector": ("things", {"kind": "full", "lr": 0.001, **STEPS, "batch_size": 2}),
    "detector-lora": ("things", {"kind": "lora", "lr": 0.01, **STEPS, "batch_size": 2}),
}
"""By what they work on."""


@pytest.fixture(scope="module")
def places(
    encoded: Encoded, studio: Studio, bench: Bench, accelerator: Accelerator, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, str]]:
    """What rows work on and start from."""
    folder = tmp_path_factory.mktemp("starts")
    zero = Row(concept="few", method=parse_method({"name": "zero_shot"}))
    starts = {
        "few": (encoded, encoded.folder.parent / "prepared", search_row("zero", zero, encoded, accelerator).concept),
        "zorb": (studio.encoded, studio.folder, studio.concept_of(name="zero_shot")),
        "things": (bench.encoded, bench.scenes, bench.start),
    }
    for name, (_, _, concept) in starts.items():
        concept.save(folder / f"{name}.safetensors")
    return {
        name: {"encoded": str(of.folder), "data": str(data), "start": str(folder / f"{name}.safetensors")}
        for name, (of, data, _) in starts.items()
    }


def row_of(name: str, places: Mapping[str, dict[str, str]], times: int = 1) -> dict[str, Any]:
    on, settings = ROWS[name]
    settings = {**settings, "batch_size": times * settings["batch_size"]}
    return {**places[on], "finetune" if "kind" in settings else "method": settings}


@pytest.fixture(scope="module")
def shared(places: dict[str, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What two processes find, by the row."""
    folder = tmp_path_factory.mktemp("shared")
    rows = [row_of(name, places) | {"out": str(folder / f"{name}.pt")} for name in ROWS]
    (folder / "rows.json").write_text(json.dumps({"processes": 2, "rows": rows}))
    program = Path(__file__).with_name("sharing.py")
    done = subprocess.run(
        [sys.executable, program, folder / "rows.json"],
        text=True,
        capture_output=True,
        cwd=folder,
        check=False,
        env={**os.environ, "PYTHONPATH": str(program.parent.parent)},
    )
    assert done.returncode == 0, done.stderr
    return {name: torch.load(folder / f"{name}.pt") for name in ROWS}


def away(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """How far what was trained is apart."""
    assert one["numbers"].keys() == other["numbers"].keys()
    return sum(float((one["numbers"][n] - t).double().square().sum()) for n, t in other["numbers"].items()) ** 0.5


@pytest.mark.parametrize("name", ROWS)
def test_two_find_what_one_does_with_twice_the_batch(
    name: str, places: dict[str, dict[str, str]], shared: dict[str, dict[str, Any]], accelerator: Accelerator,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    twice, once = (run_row(row_of(name, places, times), accelerator) for times in (2, 1))
    assert twice is not None
    assert once is not None
    print(name, away(shared[name], twice), away(once, twice), shared[name]["losses"], twice["losses"])
    assert shared[name]["losses"] == pytest.approx(twice["losses"], rel=LOSS)
    assert shared[name]["metrics"] == pytest.approx(twice["metrics"], rel=LOSS)
    assert [rate["lr"] for rate in shared[name]["rates"]] == [rate["lr"] for rate in twice["rates"]]
    assert NEARER * away(shared[name], twice) < away(once, twice)
