"""Stages made by workers in clones of their own, over a real Prefect server and a folder as DVC's remote."""

import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import copy
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, Project
from ruamel.yaml import YAML
from test_faults import LONG, small_disk  # noqa: F401
from waiting import wait_for

from cones.common.files import read_json
from flows.machines import make
from flows.processes import Programs

GRAPH = """
stages:
  plan: {cmd: python work.py plan, deps: [work.py], outs: [plan]}
  make:
    foreach: [a, b]
    do:
      cmd: python work.py ${item}
      meta: {gpu: true}
      deps: ["plan/${item}"]
      outs: [{"made/${item}": {persist: true}}]
  copy:
    foreach: [a]
    do:
      cmd: cp made/${item} after-${item}
      meta: {gpu: true}
      deps: ["made/${item}"]
      outs: [{"after-${item}": {persist: true}}]
  report: {cmd: cat made/a made/b > report, deps: [made], outs: [report]}
"""
WORK = """
import os, pathlib, sys, time
name = sys.argv[1]
if name == "plan":
    for item in "ab":
        pathlib.Path("plan").mkdir(exist_ok=True)
        pathlib.Path("plan", item).write_text(item * 1000 + pathlib.Path("work.py").read_text()[-20:])
    sys.exit()
open(os.environ["MADE"], "a").write(f"{name} {pathlib.Path.cwd().name} {os.getpid()}\\n")
for step in range(int(pathlib.Path(os.environ["MADE"]).with_name("steps").read_text())):
    time.sleep(0.1)
pathlib.Path("made").mkdir(exist_ok=True)
pathlib.Path("made", name).write_text(pathlib.Path("plan", name).read_text().upper())
"""
FLOW = """
import json, sys
from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner
from flows import errands
from flows.graph import stage_graph
from flows.pipeline import run_stages
from flows.processes import Programs

errands.SILENCE = float(sys.argv[2])

@flow(task_runner=ThreadPoolTaskRunner())
def short():
    with Programs() as programs:
        return run_stages(stage_graph(sys.argv[3:]), 2, programs, errands.Pool(sys.argv[1]))

bad = short()
sys.exit(f"bad: {bad}" if bad else 0)
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # for machines that are busy


class Machines:
    """A small project at home, a folder as its remote, and workers in clones, all of one Prefect server."""

    def __init__(self, folder: Path, server: dict[str, str], pool: str, home: Project | None = None) -> None:
        self.folder, self.server, self.pool = folder, server, pool
        self.home = home or self._small(folder / "home")
        (self.home.folder / "requirements.txt").write_text(f"prefect=={version('prefect')} \\\n    --hash=x\n")
        (folder / "steps").write_text("1")
        self.run("dvc", "remote", "add", "-q", "--default", "store", str(folder / "store"))
        self.commit()
        self.run("prefect", "work-pool", "create", pool, "--type", "process")
        self.workers: dict[str, subprocess.Popen] = {}

    @staticmethod
    def of(machines: "Machines", pool: str) -> "Machines":
        """The same home and remote with another pool."""
        other = copy(machines)
        other.pool, other.workers = pool, {}
        other.run("prefect", "work-pool", "create", pool, "--type", "process")
        return other

    def _small(self, folder: Path) -> Project:
        folder.mkdir(parents=True)
        shutil.copytree(ROOT / "flows", folder / "flows", ignore=shutil.ignore_patterns("__pycache__"))
        ignored = "/plan\n/made\n/after-*\n/report\n/checkpoints\n__pycache__\n/prefect*\n"
        tables = "".join(f"{name}: {{}}\n" for name in ("data", "backbones", "concepts", "runs"))
        files = {"dvc.yaml": GRAPH, "work.py": WORK, ".gitignore": ignored, "params.yaml": tables}
        for name, text in files.items():
            (folder / name).write_text(text)
        project = Project.at(folder)
        for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
            assert project.run(*command).returncode == 0
        return project

    @property
    def more(self) -> dict[str, str]:
        made = str(self.folder / "made")
        return {**self.server, "PYTHONPATH": str(ROOT), "MADE": made, "PREFECT_WORKER_QUERY_SECONDS": "1"}

    def change(self, text: str) -> None:
        """Another commit, at which all has to be made again and nothing has run."""
        self.forget()
        self.made()
        (self.home.folder / "work.py").write_text(f"{WORK}# {text}\n")
        self.commit()

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess:
        done = self.home.run(*command, **self.more)
        assert not check or done.returncode == 0, done.stdout
        return done

    def commit(self) -> None:
        self.run("git", "add", "-A")
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "x")

    def clone(self, name: str) -> Path:
        self.run("git", "clone", "-q", str(self.home.folder), str(self.folder / name))
        return self.folder / name

    @contextmanager
    def worker(self, name: str) -> Iterator[subprocess.Popen]:
        """A worker in a clone, with a process group of its own."""
        where = self.folder / name if (self.folder / name).exists() else self.clone(name)
        with (self.folder / f"{name}.log").open("a") as log:
            process = subprocess.Popen(
                ["prefect", "worker", "start", "--pool", self.pool, "--name", name, "--limit", "1"], cwd=where,
                env=self.home.environment(**self.more), stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.workers[name] = process
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(30)

    def flow(self, *targets: str, silence: float = 45) -> list[str]:
        return ["python", "-c", FLOW, self.pool, str(silence), *targets]

    def begun(self) -> bool:
        """Whether a stage has said that it runs, since the last look at `made`."""
        path = self.folder / "made"
        return path.exists() and path.read_text().endswith("\n")

    def made(self) -> list[list[str]]:
        """Which stages really ran, in which clone and process, since the last look."""
        path = self.folder / "made"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [line.split() for line in lines]

    def lock(self) -> dict:
        return YAML(typ="safe").load(self.home.folder / "dvc.lock")["stages"]

    def forget(self) -> None:
        """Home as before anything ran there."""
        for name in ("dvc.lock", ".dvc/cache", "plan", "made", "report", "after-a"):
            path = self.home.folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory, with_prefect: dict[str, str]) -> Iterator[Machines]:
    """With a worker in each of two clones."""
    made = Machines(tmp_path_factory.mktemp("machines"), with_prefect, "away")
    with made.worker("one"), made.worker("two"):
        yield made


def test_two_workers_make_what_one_machine_makes(machines: Machines) -> None:
    machines.run("dvc", "repro", "-q")
    alone = machines.lock()
    machines.forget()
    machines.made()
    machines.run(*machines.flow())
    assert machines.lock() == alone
    assert "Running stage" not in machines.run("dvc", "repro").stdout
    made = machines.made()
    assert sorted(name for name, *_ in made) == ["a", "b"]
    assert {where for _, where, _ in made} == {"one", "two"}
    for name in ("one", "two"):  # left as it was, with nothing that it did not need
        git = subprocess.run(["git", "status", "--porcelain"], cwd=machines.folder / name, capture_output=True)
        assert not git.stdout
        assert not (machines.folder / name / "report").exists()

    machines.forget()  # another machine at home: all is in the remote
    machines.run(*machines.flow())
    assert not machines.made()
    assert machines.lock() == alone


def test_a_remote_that_is_away_loses_nothing_that_was_made(machines: Machines) -> None:
    """Its worker tries again, the flow ends failed and names it; the worker has kept what it made."""
    (machines.folder / "steps").write_text("30")
    machines.change("again")
    store, away = machines.folder / "store", machines.folder / "away"
    flow = machines.home.start("flow.log", *machines.flow("make@a"), **machines.more)
    wait_for(machines.begun, 300)
    store.rename(away)
    store.write_text("a file in the place of the folder")
    assert flow.wait(400) == 1
    for told in ("bad: ['make@a']", "DVC's remote cannot be used", "make@a kept by the worker in"):
        assert told in machines.home.log("flow.log")
    assert "again in 30 seconds" in "".join((machines.folder / f"{name}.log").read_text() for name in machines.workers)
    ((_, where, _),) = machines.made()
    store.unlink()
    away.rename(store)
    machines.run(*machines.flow("make@a"))
    assert machines.lock()["make@a"]
    assert where not in {again for _, again, _ in machines.made()}  # at most the other worker, which lacks it


def test_two_senders_of_the_same_share_a_run_and_a_killed_worker_is_noticed(machines: Machines) -> None:
    (machines.folder / "steps").write_text("600")
    machines.change("once more")
    other = Project.at(machines.clone("other"))
    senders = (machines.home, other)
    flows = [
        who.start(f"{i}.log", *machines.flow("make@a", silence=30), **machines.more) for i, who in enumerate(senders)
    ]
    wait_for(lambda: all("has it" in machines.home.log(f"{i}.log") for i in range(2)), 300)
    wait_for(machines.begun, 300)
    ((_, where, _),) = machines.made()
    told = json.loads(machines.run("cones", "status", "--json").stdout)
    (work,) = [work for run in told for work in run["work"] if work["name"] == "make@a"]
    assert (work["state"], work["machine"]) == ("running", socket.gethostname())
    killed = machines.workers[where]
    for process in (*psutil.Process(killed.pid).children(recursive=True), psutil.Process(killed.pid)):
        process.kill()
    killed.wait()
    (machines.folder / "steps").write_text("1")
    assert [flow.wait(400) for flow in flows] == [0, 0], machines.home.log("0.log")
    ((_, again, _),) = machines.made()
    assert {where, again} == {"one", "two"}
    for sender in ("0.log", "1.log"):
        assert "no word for 30 seconds from the worker on" in machines.home.log(sender)
    assert (other.folder / "made/a").read_bytes() == (machines.home.folder / "made/a").read_bytes()


def test_stages_that_travel_together_share_a_dvc_process_and_no_failure(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines.change("together")
    machines.run("dvc", "repro", "-q", "plan")
    asked = machines.folder / "asked.json"
    machines.run("python", "-m", "flows.travel", "offer", str(asked), "make@a", "make@b")
    offered = read_json(asked)
    assert offered["stages"] == ["make@a", "make@b"]
    monkeypatch.chdir(machines.clone("three"))
    monkeypatch.setenv("MADE", str(machines.folder / "made"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    Path("made/a").mkdir(parents=True)  # in the place of its file
    lines: list[str] = []
    with Programs() as programs:
        outcomes = make(offered["stages"], offered["lock"], programs, {}, lines.append)
    assert {name: "error" in of for name, of in outcomes.items()} == {"make@a": True, "make@b": False}
    machines.run("python", "-m", "flows.travel", "receive", "make@b")
    assert (machines.home.folder / "made/b").exists()
    assert not (machines.home.folder / "made/a").exists()


def test_ctrl_c_cancels_a_run_that_nobody_else_waits_for(machines: Machines) -> None:
    (machines.folder / "steps").write_text("600")
    machines.change("for two")
    others = machines.folder / "others"
    senders = (machines.home, Project.at(others if others.exists() else machines.clone("others")))
    flows = [who.start(f"{i}.log", *machines.flow("make@a"), **machines.more) for i, who in enumerate(senders)]
    wait_for(lambda: all("has it" in machines.home.log(f"{i}.log") for i in range(2)), 300)
    wait_for(machines.begun, 300)
    ((_, _, made),) = machines.made()
    flows[0].send_signal(signal.SIGINT)
    assert flows[0].wait(200) != 0
    time.sleep(3)  # in which it would be cancelled
    assert psutil.pid_exists(int(made))
    flows[1].send_signal(signal.SIGINT)
    assert flows[1].wait(200) != 0
    wait_for(lambda: not psutil.pid_exists(int(made)), 300)
    (machines.folder / "steps").write_text("1")


def test_a_full_disk_on_a_worker_fails_its_stage_and_no_other(machines: Machines, small_disk: Path) -> None:  # noqa: F811
    """The flow names it, and goes on with it when there is space."""
    machines.change("with little space")
    small = Machines.of(machines, "small")
    clone = small.clone("little")
    (clone / ".dvc/cache").symlink_to(small_disk)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 1024)
    with small.worker("little"):
        failed = small.run(*small.flow("make@a", "plan"), check=False)
        assert failed.returncode == 1
        assert "bad: ['make@a']" in failed.stdout
        assert "error: the disk is full where" in failed.stdout
        filler.unlink()
        small.run(*small.flow("make@a"))


def test_what_cannot_be_sent_is_refused(machines: Machines) -> None:
    command = machines.flow("make@a")
    nowhere = machines.run(*command[:3], "nowhere", *command[4:], check=False)
    assert "there is no work pool `nowhere`; `prefect work-pool create nowhere" in nowhere.stdout
    machines.run("dvc", "remote", "remove", "store")
    (machines.home.folder / "more.py").write_text("")
    refused = machines.run(*command, check=False).stdout
    assert "this work tree is none: .dvc/config, more.py; commit or stash" in refused
    machines.commit()
    assert "this project has none: `dvc remote add --default" in machines.run(*command, check=False).stdout


@pytest.mark.timeout(600)
def test_a_search_killed_on_a_worker_goes_on_and_what_needs_it_is_made_as_at_home(
    finished: Project, machines: Machines, tmp_path: Path
) -> None:
    """In a fresh clone: a search, then the evaluation that looks at it, with the same bits; what they read has
    travelled, and nothing else."""
    home = finished.copy(tmp_path / "home")
    home.params(LONG)
    team = Machines(tmp_path, machines.server, "shipped", home)
    team.run("dvc", "repro", "evaluate@few")
    row, before = home.folder / "searched/few/few-coop", team.lock()
    alone = {name: (row / name).read_bytes() for name in ("concept.safetensors", "metrics.json")}
    shutil.rmtree(row)
    shutil.rmtree(home.folder / ".dvc/cache/runs")
    flow = home.start("flow.log", *team.flow("evaluate@few", silence=30), **team.more)
    with team.worker("one") as worker:
        wait_for(lambda: list((tmp_path / "one").glob("checkpoints/*/state.safetensors")), 300)
        for process in (*psutil.Process(worker.pid).children(recursive=True), psutil.Process(worker.pid)):
            process.kill()
        worker.wait()
    with team.worker("one"):
        assert flow.wait(400) == 0, home.log("flow.log")
    assert "few-coop: resuming after epoch" in (tmp_path / "one.log").read_text()
    assert {name: (row / name).read_bytes() for name in alone} == alone
    outs = [{out["path"]: out["md5"] for out in lock["evaluate@few"]["outs"]} for lock in (before, team.lock())]
    assert outs[0]["evaluated/few/metrics.json"] == outs[1]["evaluated/few/metrics.json"]
    assert (tmp_path / "one/evaluated/few/metrics.json").exists()
    assert not (tmp_path / "one/data/prepared/glyphs/report.json").exists()


def test_two_workers_take_two_studies(
    finished: Project, with_prefect: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Sent by the flow that people start, whole, up to the registry."""
    folder, names = tmp_path_factory.mktemp("studies"), ("taskres", "lp_plus_plus")
    home = finished.copy(folder / "home")
    yaml, params = YAML(), home.folder / "params.yaml"
    content = yaml.load(params)
    study = {"data": "glyphs", "backbone": "toy", "shots": [1], "seeds": 2, "views": 2}
    content["studies"] = {name: {**study, "methods": [name]} for name in names}
    yaml.dump(content, params)
    (home.folder / "studies").mkdir()
    for name in ("dvc.yaml", ".gitignore"):
        shutil.copy(ROOT / "studies" / name, home.folder / "studies" / name)
    assert home.run("dvc", "repro", "-q", "plan", "prepare@glyphs").returncode == 0
    team = Machines(folder, with_prefect, "studies", home)
    with team.worker("one"), team.worker("two"):
        asked = [word for name in names for word in ("--study", name)]
        team.run("python", "-m", "flows.pipeline", "--on", team.pool, *asked)
    made = [[w for w in ("one", "two") if (folder / w / "studies" / name).exists()] for name in names]
    assert sorted(made) == [["one"], ["two"]]
    assert "Running stage" not in team.run("dvc", "repro", *(f"studies/dvc.yaml:study@{n}" for n in names)).stdout
    assert all((home.folder / "studies" / name / "summary.json").exists() for name in names)
