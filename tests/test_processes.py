"""Several processes that share the steps of a row: the same result as of one with so many times the batch."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from accelerate import Accelerator
from conftest import ROOT, Project
from finetunes import Bench
from generations import NOISE, Studio
from ruamel.yaml import YAML
from sharing import run_row
from torch import nn
from waiting import wait_for

from cones.common.errors import ConesError, ParamsError, SearchError
from cones.config.params import parse_finetune, parse_method, parse_params
from cones.config.plan import compile_plan
from cones.features.encoded import Encoded
from cones.finetuning.steps import Steps
from cones.interfaces.pictures import Share
from cones.interfaces.processes import open_accelerator
from cones.methods.searched import Row
from cones.search.row import search_row
from cones.search.trained import Trained
from flows import gpus as lending
from flows import stages
from flows.gpus import some_gpus
from flows.graph import Stage, processes_of
from flows.signs import Signs

NEARER = 10
"""Times that the result of two processes is nearer to that of one with twice the batch than that of one with the same
batch is, in the norm of all numbers that train. Most are a million times nearer; AdamW makes steps of gradients that
are nothing but rounding, as those of the biases of keys in an attention."""
LOSS = 1e-5
"""Relative difference of training losses."""
STEPS = {"steps": 4, "batch_size": 3, "validate_every": 2}
FEW, PAIR = {**STEPS, "batch_size": 1}, {**STEPS, "batch_size": 2}
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
    "detector": ("things", {"kind": "full", "lr": 0.001, **PAIR}),
    "detector-lora": ("things", {"kind": "lora", "lr": 0.01, **PAIR}),
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
    squares = [(one["numbers"][n].double() - t.double()).square().sum() for n, t in other["numbers"].items()]
    return float(sum(squares)) ** 0.5


@pytest.mark.parametrize("name", ROWS)
def test_two_find_what_one_does_with_twice_the_batch(
    name: str, places: dict[str, dict[str, str]], shared: dict[str, dict[str, Any]], accelerator: Accelerator,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    twice, once = (run_row(row_of(name, places, times), accelerator) for times in (2, 1))
    assert twice is not None
    assert once is not None
    assert shared[name]["losses"] == pytest.approx(twice["losses"], rel=LOSS)
    assert shared[name]["metrics"] == pytest.approx(twice["metrics"], rel=LOSS)
    assert [rate["lr"] for rate in shared[name]["rates"]] == [rate["lr"] for rate in twice["rates"]]
    assert once["losses"] != pytest.approx(twice["losses"], rel=LOSS)
    assert NEARER * away(shared[name], twice) < away(once, twice)


PARAMS = """
backbones:
  toy: {kind: clip, source: models/backbones/toy}
data:
  glyphs: {kind: world, source: cones/synthetic, vocabulary: novel, size: 32, train: 6, val: 4, test: 5}
concepts:
  few: {task: classification, backbone: toy, data: glyphs, shots: 2, seed: 0, views: 2}
runs:
  few-zero-shot: {concept: few, method: {name: zero_shot}}
finetunes:
  few-lora:
    {concept: few, from: few-zero-shot, kind: lora, processes: 2, steps: 60, lr: 2.0e-3, batch_size: 4,
     validate_every: 20, checkpoint_seconds: 0}
"""


def members(launcher: psutil.Process) -> list[psutil.Process]:
    """The processes that one started, by their number."""
    found = [p for p in launcher.children() if "RANK" in p.environ()]
    return sorted(found, key=lambda process: int(process.environ()["RANK"]))


def end(process: psutil.Popen) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()


def test_a_row_goes_on_to_the_same_bits_after_a_process_was_killed(project: Project) -> None:
    project.params(PARAMS)
    for stage, name in (("prepare", "glyphs"), ("encode", "few"), ("search", "few-zero-shot")):
        assert project.stage(stage, name).returncode == 0
    command = ("python", "stages/finetune.py", "few-lora")
    whole = project.run(*command)
    assert whole.returncode == 0, whole.stdout
    row = project.folder / "searched/few/few-lora"
    files = {name: (row / name).read_bytes() for name in ("concept.safetensors", "weights.safetensors", "metrics.json")}
    shutil.rmtree(row)

    process = psutil.Popen([*command], cwd=project.folder, env=project.environment(), stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: list(project.folder.glob("checkpoints/*/state.safetensors")), 240)
        both = members(process)
        assert len(both) == 2
        both[1].kill()
        told = process.communicate(timeout=60)[1]
    finally:
        end(process)
    assert process.returncode == 128 + signal.SIGKILL
    assert "error: process 2 of 2 was ended by SIGKILL, and so the others were ended, too" in told
    assert "Traceback" not in told
    assert not any(p.is_running() for p in both)
    assert not row.exists()

    again = project.run(*command)
    assert again.returncode == 0, again.stdout
    assert "few-lora: resuming after step" in again.stdout
    assert {name: (row / name).read_bytes() for name in files} == files
    assert not list(project.folder.glob("checkpoints/*/state.safetensors"))


PROGRAM = """
import os, sys, time
from pathlib import Path
from cones.common.errors import ConesError
from cones.common.launch import ran_in_processes
from cones.common.process import run_stage

def main():
    if ran_in_processes(3):
        print("all done", flush=True)
        return
    number = int(os.environ["RANK"])
    Path(f"{{os.getpid()}}.pid").touch()
    print("process", number, flush=True)
    {does}

run_stage(main)
"""
SLEEP = "time.sleep(60)"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], psutil.Popen]]:
    """Start a program that runs in three processes."""

    def begin(does: str) -> psutil.Popen:
        (tmp_path / "program.py").write_text(PROGRAM.format(does=does))
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        environment = {k: v for k, v in os.environ.items() if k != "DVC_STAGE"} | {"PYTHONPATH": str(ROOT)}
        started.append(psutil.Popen([sys.executable, "program.py"], cwd=tmp_path, text=True, env=environment, **pipes))
        return started[-1]

    started: list[psutil.Popen] = []
    yield begin
    for process in started:
        end(process)


def begun(folder: Path) -> list[psutil.Process]:
    """All three, once they have begun."""
    wait_for(lambda: len(list(folder.glob("*.pid"))) == 3, 240)
    return [psutil.Process(int(path.stem)) for path in folder.glob("*.pid")]


def test_what_the_first_process_says_is_what_is_said(start: Callable[[str], psutil.Popen]) -> None:
    process = start("assert os.environ['WORLD_SIZE'] == '3'")
    assert process.communicate(timeout=60) == ("process 0\nall done\n", "")
    assert process.returncode == 0


@pytest.mark.parametrize("number", [0, 2])
def test_one_that_fails_ends_all_and_says_why(
    number: int, start: Callable[[str], psutil.Popen], tmp_path: Path
) -> None:
    process = start(f"if number == {number}: raise ConesError('no luck')\n    {SLEEP}")
    assert process.communicate(timeout=60)[1] == "error: no luck\n"
    assert process.returncode == 1
    assert not [p for p in tmp_path.glob("*.pid") if psutil.pid_exists(int(p.stem))]


def test_they_end_with_what_started_them(start: Callable[[str], psutil.Popen], tmp_path: Path) -> None:
    process = start(SLEEP)
    every = begun(tmp_path)
    process.kill()
    assert not psutil.wait_procs(every, timeout=10)[1]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_goes_to_the_first_which_ends_all(
    sent: signal.Signals, code: int, start: Callable[[str], psutil.Popen], tmp_path: Path
) -> None:
    process = start(f"{SLEEP}")
    every = begun(tmp_path)
    process.send_signal(sent)
    assert process.communicate(timeout=20)[1] == "stopped; run it again to go on\n"
    assert process.returncode == code
    assert not psutil.wait_procs(every, timeout=10)[1]


def test_one_is_written_nowhere() -> None:
    tuned = {"concept": "few", "from": "a", "kind": "lora"}
    assert "processes" not in parse_finetune({**tuned, "processes": 1}).model_dump()
    assert parse_finetune({**tuned, "processes": 2}).model_dump()["processes"] == 2
    row = Row(concept="few", method=parse_method({"name": "upt"}))
    assert set(row.model_dump()) == {"concept", "method"}


@pytest.mark.parametrize(
    ("row", "mistake"),
    [
        ("runs:\n  a: {concept: few, processes: 2, method: {name: coop}}",
         "`coop` searches on features that are kept, and gains nothing by several `processes`, which are for "
         "vpt_shallow, vpt_deep, upt; leave it out (runs.a.processes)"),
        ("runs:\n  a: {concept: few, processes: 0, method: {name: upt}}", "`processes`: "),
        ("finetunes:\n  b: {concept: few, from: few-zero-shot, kind: head, processes: 2}",
         "`kind: head` is not defined on a `clip` backbone"),
    ],
)  # fmt: skip
def test_rows_that_have_no_use_for_several_are_refused(row: str, mistake: str) -> None:
    tables = YAML(typ="safe").load(PARAMS)
    for table, rows in YAML(typ="safe").load(row).items():
        tables[table] |= rows
    with pytest.raises(ParamsError, match=re.escape(mistake)):
        parse_params(tables)


def test_a_plan_of_one_process_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    tables = YAML(typ="safe").load(PARAMS)
    tables["runs"]["few-upt"] = {"concept": "few", "method": {"name": "upt"}}
    del tables["finetunes"]["few-lora"]["processes"]
    one = compile_plan(parse_params(tables))
    assert "processes" not in json.dumps([planned.settings for planned in one.values()])
    tables["runs"]["few-upt"]["processes"] = tables["finetunes"]["few-lora"]["processes"] = 2
    two = compile_plan(parse_params(tables))
    assert two["search", "few-upt"].settings["processes"] == 2
    assert two["finetune", "few-lora"].settings["finetune"]["processes"] == 2
    differ = {stage for stage in one if one[stage] != two[stage]}
    assert differ == {("search", "few-upt"), ("finetune", "few-lora"), ("evaluate", "few"), ("report", "")}


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where one GPU is lent; it is none of this machine."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CONES_MEET", str(tmp_path / "meet"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConesError, match="`processes: 2` asks for 2 GPUs, one each, and this stage may use 1; set"):
        open_accelerator()


def test_more_processes_than_pictures_are_refused(encoded: Encoded, accelerator: Accelerator) -> None:
    several = SimpleNamespace(num_processes=31, process_index=0)
    settings = parse_finetune({"concept": "few", "from": "a", "kind": "lora", "processes": 31})
    trained = Trained({"w": nn.Parameter(torch.zeros(1))}, None, 1)
    with pytest.raises(SearchError, match="`processes: 31` shares out the pictures of a step, and there are 30"):
        Steps(trained, None, None, encoded.train, settings, 0, several, lambda step: None)


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_every_picture_of_a_batch_is_some_process_s(processes: int) -> None:
    for count in (1, 2, 5, 12):
        parts = [Share(number, processes).of(count) for number in range(processes)]
        assert [i for part in parts for i in range(count)[part.rows]] == list(range(count))
        assert max(p.stop - p.start for p in parts) - min(p.stop - p.start for p in parts) <= 1
        assert sum(part.weight for part in parts) == pytest.approx(1)


def test_gpus_of_two_rows_are_lent_without_a_deadlock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two flows want two of three GPUs each, and a third one, many times over."""
    monkeypatch.setattr(lending, "LOCK_FOLDERS", (tmp_path,))
    names, done, in_use = ["a", "b", "c"], [], []

    def lend(count: int) -> None:
        for _ in range(20):
            with some_gpus(names, count, interval=0.001) as lent:
                assert len(lent) == count
                assert not set(lent) & set(in_use)
                in_use.extend(lent)
                time.sleep(0.001)
                for name in lent:
                    in_use.remove(name)
        done.append(count)

    threads = [threading.Thread(target=lend, args=[count]) for count in (2, 2, 3, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(done) == [1, 2, 2, 3]
    with (
        pytest.raises(ConesError, match="a row with `processes: 4` wants 4 GPUs, and there are 3 here; lower"),
        some_gpus(names, 4),
    ):
        pass


def test_a_stage_is_lent_a_gpu_for_each_of_its_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert processes_of(parse_params(YAML(typ="safe").load(PARAMS))) == {"finetune@few-lora": 2}
    monkeypatch.setattr(lending, "LOCK_FOLDERS", (tmp_path,))
    monkeypatch.setenv("PATH", str(tmp_path))  # without nvidia-smi, also where there are GPUs
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.setattr(stages, "get_run_logger", lambda: SimpleNamespace(info=print))
    monkeypatch.setattr(stages, "gpu_slots", lambda count: nullcontext(count))
    lent = []
    batch = SimpleNamespace(run=lambda name, environment, log: lent.append(environment["CUDA_VISIBLE_DEVICES"]))
    with some_gpus(["1"], 1):
        for processes in (1, 2):
            stages.reproduce.fn(Stage("finetune@few-lora", (), gpu=True, processes=processes), batch, Signs())
    assert lent == ["0", "0,2"]
