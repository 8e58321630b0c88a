"""The Prefect flows on a real server, and by a real worker from the shipped deployments."""

import base64
import errno
import json
import os
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import PARAMS, ROOT, Project
from ruamel.yaml import YAML

from cones.common.errors import ConesError
from cones.config.params import load_params
from flows import gpus as lending
from flows.batches import AWAY_SECONDS, BATCH_SECONDS, MOST, batch_size
from flows.gpus import gpus, lock_folder, some_gpus
from flows.graph import stage_graph
from flows.pipeline import row, with_row
from flows.processes import CommandFailed, Programs
from flows.results import _links

BAD_CONCEPT = """
  bad: {task: classification, backbone: toy, data: glyphs, shots: 2, views: 2}
runs:
  bad-zero-shot: {concept: bad, method: {name: zero_shot}}
  bad-coop: {concept: bad, method: {name: coop, n_ctx: 2, epochs: 3, lr: 1.0e+38, warmup_epochs: 0}}
"""


def ask(environment: dict[str, str], what: str, query: dict | None = None) -> list[dict]:
    """What the Prefect server knows."""
    password = base64.b64encode(environment["PREFECT_API_AUTH_STRING"].encode()).decode()
    request = urllib.request.Request(
        f"{environment['PREFECT_API_URL']}/{what}/filter",
        json.dumps(query or {}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Basic {password}"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def results_in(folder: Path) -> dict:
    """`dvc.lock` as a mapping, without what names a time."""
    stages = YAML(typ="safe").load(folder / "dvc.lock")["stages"]
    timed = ("cost.json", "results/summary.json", "results/report.html", "searched", "searched/few", "evaluated")
    for name in [n for n in stages if n.startswith("pretrain-")]:  # frozen: a flow leaves them, DVC notes them
        stages.pop(name)
    for stage in stages.values():
        for side in ("deps", "outs"):
            stage[side] = [x for x in stage.get(side, []) if not x["path"].endswith(timed)]
    return stages


def test_the_flow_makes_what_dvc_makes(project, finished, with_prefect) -> None:
    """On two GPUs, as far as the flow knows: torch here has none and computes on the CPU."""
    done = project.run("python", "-m", "flows.pipeline", CUDA_VISIBLE_DEVICES="GPU-x0,GPU-x1", **with_prefect)
    assert done.returncode == 0, done.stdout
    assert "at most 2 at once, on" in done.stdout
    assert done.stdout.count("on GPU GPU-x0") + done.stdout.count("on GPU GPU-x1") == 5
    assert "on GPU GPU-x1" in done.stdout
    ours, theirs = results_in(project.folder), results_in(finished.folder)
    assert ours == theirs
    assert len(ours) == 8
    compared = [x["path"] for stage in ours.values() for x in stage["outs"]]
    assert {"concept.safetensors", "metrics.json", "curves.csv", "train"} <= {Path(p).name for p in compared}

    table = next(a for a in ask(with_prefect, "artifacts") if a["key"] == "results")
    assert [line["row"] for line in json.loads(table["data"])] == ["few-zero-shot", "few-coop", "few-cones"]
    assert "models:/few@champion" in table["description"]
    assert "models:/few@champion" in project.cones("lookup", "few").stdout
    assert "searching few-coop: 2/2" in done.stdout

    again = project.run("python", "-m", "flows.pipeline", **with_prefect)
    assert again.returncode == 0
    assert "Running stage" not in again.stdout


def test_a_worker_runs_the_deployments_and_a_failure_stays_with_its_descendants(
    finished, tmp_path: Path, with_prefect
) -> None:
    project = finished.copy(tmp_path / "project")
    project.params(PARAMS.replace("\nruns:\n", BAD_CONCEPT))
    assert project.run("prefect", "work-pool", "create", "cones", "--type", "process", **with_prefect).returncode == 0
    deployed = project.run("prefect", "--no-prompt", "deploy", "--all", **with_prefect)
    assert deployed.returncode == 0, deployed.stdout
    worker = project.start("worker.log", "prefect", "worker", "start", "--pool", "cones", **with_prefect)
    try:
        run = ("prefect", "deployment", "run", "--watch")
        failed = project.run(*run, "pipeline/pipeline", **with_prefect)
        assert failed.returncode != 0, project.log("worker.log")
        row = project.run(*run, "row/row", "--param", "row=few-cones", **with_prefect)
        assert row.returncode == 0, row.stdout + project.log("worker.log")
    finally:
        worker.terminate()
        worker.wait(30)
    log = project.log("worker.log")
    assert "bad-coop, evaluate@bad, report failed or could not run, everything else is done" in log
    assert "the loss is nan at step 2" in log
    assert "Retry 1/2" not in log
    states = {r["name"]: r["state_type"] for r in ask(with_prefect, "task_runs", {"sort": "EXPECTED_START_TIME_ASC"})}
    assert states["search@bad-coop"] == "FAILED"
    assert states["search@bad-zero-shot"] == states["evaluate@few"] == states["look up few"] == "COMPLETED"
    assert not (project.folder / "evaluated/bad").exists()
    assert "URI  models:/few@champion" in log


SHORT_STAGES = """
stages:
  first: {cmd: echo ready > first, outs: [first]}
  work:
    foreach: [a, b, c, d, e]
    do: {cmd: "python work.py ${item}", deps: [work.py, first], outs: ["made-${item}"]}
  after:
    foreach: [a, b, c, d, e]
    do: {cmd: "cp made-${item} after-${item}", deps: ["made-${item}"], outs: ["after-${item}"]}
"""
WORK = """
import pathlib, sys
name, again = sys.argv[1], pathlib.Path("again")
if name == "c" and not again.exists():
    again.touch()
    sys.exit(75)
if name == "d":
    sys.exit("error: d cannot be made")
print("making", name)
pathlib.Path(f"made-{name}").write_text(name)
"""
SHORT_FLOW = """
import json
from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner
from flows import batches
from flows.graph import stage_graph
from flows.pipeline import run_stages
from flows.processes import Programs

batches.BATCH_SECONDS = 1e6  # however busy this machine is
commands = []

class Noted(Programs):
    def start(self, what, command, *more):
        commands.append(command[4:])
        return super().start(what, command, *more)

@flow(task_runner=ThreadPoolTaskRunner())
def short():
    return [run_stages(stage_graph(), 1, Noted()), commands]

open("noted.json", "w").write(json.dumps(short()))
"""


def test_short_stages_share_a_dvc_process_and_no_failure(tmp_path: Path, with_prefect) -> None:
    """One of five may pass and is tried again, one fails for good: both end what they shared, which goes on anew."""
    project = Project.at(tmp_path)
    (tmp_path / "dvc.yaml").write_text(SHORT_STAGES)
    (tmp_path / "work.py").write_text(WORK)
    assert project.run("dvc", "init", "--quiet", "--no-scm").returncode == 0
    done = project.run("python", "-c", SHORT_FLOW, PYTHONPATH=str(ROOT), **with_prefect)
    assert done.returncode == 0, done.stdout
    bad, commands = json.loads((tmp_path / "noted.json").read_text())
    assert bad == ["work@d", "after@d"]
    together = ["work@b", "work@c", "work@d", "work@e"]
    assert commands == [
        ["first"], ["work@a"], together, together[1:], together[3:],
        ["after@a"], ["after@b", "after@c", "after@e"],
    ]  # fmt: skip
    assert {p.name for p in tmp_path.glob("after-*")} == {"after-a", "after-b", "after-c", "after-e"}

    names = [f"{kind}@{name}" for kind in ("work", "after") for name in "abcde"]
    runs = ask(with_prefect, "task_runs", {"task_runs": {"name": {"any_": names}}})
    states = {r["name"]: r["state_type"] for r in runs}
    assert len(runs) == len(names)
    assert [name for name in names if states[name] != "COMPLETED"] == bad
    assert states["work@d"] == "FAILED"
    assert {r["name"]: r["run_count"] for r in runs if r["run_count"] != 1} == {"work@c": 2, "after@d": 0}
    for run in runs:
        logs = ask(with_prefect, "logs", {"logs": {"task_run_id": {"any_": [run["id"]]}}})
        told = "\n".join(log["message"] for log in logs)
        assert told.count("Running stage") == run["run_count"]
        assert [name for name in "abce" if f"making {name}" in told] == (
            [run["name"][-1]] if run["name"][:4] == "work" and run["name"] not in bad else []
        )


@pytest.mark.parametrize(
    ("ready", "parallel", "seconds", "size"),
    [
        (8, 2, [], 1),
        (8, 2, [1.0, 3.0], 4),
        (9, 2, [0.1], 5),
        (2, 2, [0.1], 1),
        (100, 2, [0.1], MOST),
        (100, 2, [BATCH_SECONDS / 3], 3),
        (100, 1, [600.0, 900.0], 1),
    ],
    ids=["unknown", "halved", "odd", "a slot each", "many", "slower", "long"],
)
def test_no_stage_waits_long_for_another_of_its_process(
    ready: int, parallel: int, seconds: list[float], size: int
) -> None:
    assert batch_size(ready, parallel, seconds) == size


def test_stages_that_travel_are_handed_over_together_for_longer() -> None:
    took = [AWAY_SECONDS / 7.5]
    assert (batch_size(7, 1, took, away=True), batch_size(7, 1, took)) == (7, 1)
    assert batch_size(7, 2, took, away=True) == 4
    assert batch_size(7, 1, [AWAY_SECONDS + 1], away=True) == 1


def test_stages_are_named_by_dvc_and_know_what_they_need(finished, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(finished.copy(tmp_path / "project").folder)
    graph = stage_graph()
    assert not [name for name in graph if name.startswith("pretrain")]
    assert graph["encode@few"].needs == ("plan", "prepare@glyphs")
    assert [name for name, stage in graph.items() if not stage.gpu] == ["plan", "prepare@glyphs", "report"]
    part = stage_graph(["search@few-cones"])
    assert list(part) == ["plan", "prepare@glyphs", "encode@few", "search@few-cones"]
    with pytest.raises(
        ConesError, match=r"`search@few-cnes` is not a stage of dvc.yaml; did you mean `search@few-cones`"
    ):
        stage_graph(["search@few-cnes"])


def test_a_gpu_is_lent_to_one_stage_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lending, "LOCK_FOLDERS", (tmp_path,))
    monkeypatch.setenv("PATH", str(tmp_path))  # without nvidia-smi, also where there are GPUs
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert gpus() == ["0", "1"]
    told = []

    def third() -> None:
        with some_gpus(gpus(), 1, interval=0.01) as (device,):
            told.append(device)

    with some_gpus(gpus(), 1) as (first,):
        with some_gpus(gpus(), 1) as (second,):
            assert (first, second) == ("0", "1")
            waiting = threading.Thread(target=third)
            waiting.start()
            time.sleep(0.2)
            assert told == []
        waiting.join(5)
    assert told == ["1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus() == []


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine whose nvidia-smi names two GPUs."""
    program = tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nprintf '0, GPU-aa11\\n1, GPU-bb22\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def test_a_gpu_has_one_name_whoever_asks(two_gpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus() == ["GPU-aa11", "GPU-bb22"]
    for given, names in {
        "1,0": ["GPU-bb22", "GPU-aa11"],
        "GPU-bb22,GPU-a": ["GPU-bb22", "GPU-aa11"],
        "0,GPU-aa11": ["GPU-aa11"],
        "GPU-cc,MIG-aa11": ["GPU-cc", "MIG-aa11"],
        "-1": [],
    }.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert gpus() == names
    (tmp_path / "bin/nvidia-smi").write_text("#!/bin/sh\necho No devices were found, sorry\nexit 6\n")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert gpus() == []


def test_locks_of_gpus_are_where_every_user_finds_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not in TMPDIR, which is a user's own; and another user can open the file whatever the umask was."""
    folders = [tmp_path / name for name in ("not-there", "of-root", "shared", "later")]
    for folder, mode in zip(folders[1:], (0o755, 0o1777, 0o1777)):
        folder.mkdir()
        folder.chmod(mode)
    monkeypatch.setattr(lending, "LOCK_FOLDERS", folders)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "mine"))
    assert lock_folder() == folders[2]
    before = os.umask(0o077)
    try:
        with some_gpus(["GPU-aa11"], 1):
            assert (folders[2] / "cones-gpu-GPU-aa11.lock").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)


def test_a_flow_that_ends_ends_its_own_programs_only(tmp_path: Path) -> None:
    told: list[str] = []
    code = (
        "import os, time\nprint('begun', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('ended')"
    )
    with Programs() as one, Programs() as two:
        command = ["python", "-c", code.replace("go", str(tmp_path / "go"))]
        working = threading.Thread(target=one.run, args=("one", command, {}, told.append))
        working.start()
        while not told:
            time.sleep(0.01)
        two.__exit__()
        with pytest.raises(CommandFailed, match="the flow is ending") as caught:
            two.run("two", ["true"], {}, told.append)
        assert not caught.value.may_pass
        (tmp_path / "go").touch()
        working.join(20)
    assert told == ["begun", "ended"]


def test_a_row_is_run_with_the_others_of_its_concept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fine-tuned row, too, and all that its concept's evaluation needs."""
    monkeypatch.chdir(ROOT)
    params = load_params()
    tuned = next(iter(params.finetunes))
    concept, others = with_row(params, tuned)
    assert sorted([tuned, *others]) == sorted(params.rows(concept))
    graph = stage_graph([f"evaluate@{concept}"])
    assert f"finetune@{tuned}" in graph
    assert {f"search@{name}" for name in params.runs if name in others} <= set(graph)
    with pytest.raises(ConesError, match=rf"`{tuned}x` is no row of params.yaml; did you mean `{tuned}`"):
        with_row(params, f"{tuned}x")


def test_no_row_is_shipped_as_a_default() -> None:
    """The demo rows go with `cones new --drop-demo`; so Prefect asks for one."""
    deployments = YAML(typ="safe").load(ROOT / "prefect.yaml")["deployments"]
    assert not [d for d in deployments if d.get("parameters")]
    assert row.parameters.required == ["row"]


def test_a_worker_gets_gpus_by_a_file_of_its_own() -> None:
    """Without that file the team's compose file starts on a machine without a GPU."""
    plain, gpu = (YAML(typ="safe").load(ROOT / f"docker-compose{x}.yml")["services"] for x in ("", ".gpu"))
    assert not [name for name, service in plain.items() if {"deploy", "gpus", "runtime"} & set(service)]
    assert set(gpu) == {"worker"} < set(plain)
    (device,) = gpu["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["count"] == "all"
    assert "gpu" in device["capabilities"]
    assert gpu["worker"]["volumes"] == [f"{folder}:{folder}" for folder in lending.LOCK_FOLDERS[:2]]


@pytest.mark.parametrize(
    ("program", "again"),
    [
        ("import sys; sys.exit('error: shots must be 1 to 64')", False),
        ("import os; os.kill(os.getpid(), 9)", True),
        ("print('ERROR: failed to run: python stages/search.py x, exited with 75'); raise SystemExit(255)", True),
        ("print('ERROR: failed to run: python stages/search.py x, exited with -9'); raise SystemExit(255)", True),
        ("print('ERROR: failed to run: python stages/search.py x, exited with 137'); raise SystemExit(255)", True),
        ("print('ERROR: failed to run: python stages/search.py x, exited with 1'); raise SystemExit(255)", False),
        ("print('ERROR: failed to run: python stages/search.py x, exited with 130'); raise SystemExit(255)", False),
        ("print('ERROR: failed to run: python stages/search.py x, exited with -2'); raise SystemExit(255)", False),
        ("print('ERROR: failed to run: python stages/search.py x, exited with 143'); raise SystemExit(255)", True),
        ("import os; os.kill(os.getpid(), 7)", False),
        ("print('ERROR: failed to run: python stages/prepare.py x, exited with -7'); raise SystemExit(255)", False),
        ("print('ERROR: failed to run: python stages/prepare.py x, exited with 135'); raise SystemExit(255)", False),
        ("print('ERROR: failed to run: python stages/search.py x, exited with -11'); raise SystemExit(255)", False),
    ],
)
def test_only_what_may_pass_is_tried_again(program: str, again: bool) -> None:
    with pytest.raises(CommandFailed) as caught:
        Programs().run("it", ["python", "-c", program], {}, lambda line: None)
    assert caught.value.may_pass is again
    assert ("SIGBUS" in str(caught.value)) is any(end in program for end in (", 7)", "-7'", "135'"))


def test_a_flow_that_cannot_read_its_project_fails_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable() -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "params.yaml")

    monkeypatch.setattr("flows.pipeline.load_params", unreadable)
    state = row.fn("few-cones")
    assert state.is_failed()
    assert state.message.startswith("params.yaml: this user may not read or write there; ")


def test_the_name_of_a_folder_is_text_in_the_artefact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a`b](http:) <b>|*x*" / "results").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a`b](http:) <b>|*x*")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Path("results/report.html").touch()
    told = _links({"few"})
    assert told.count("](file:///") == 1
    for mark in "`<|*":
        assert mark not in told.replace(f"\\{mark}", "")
