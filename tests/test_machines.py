"""Stages made by workers in clones of their own, over a real Prefect server and a folder as DVC's remote."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import ROOT, Project
from ruamel.yaml import YAML

GRAPH = """
stages:
  plan: {cmd: python work.py plan, deps: [work.py], outs: [plan]}
  work:
    foreach: [a, b, c]
    do:
      cmd: python work.py ${item}
      meta: {gpu: true}
      deps: ["plan/${item}"]
      outs: [{"made/${item}": {persist: true}}]
  after:
    foreach: [a, b]
    do:
      cmd: cp made/${item} after-${item}
      meta: {gpu: true}
      deps: ["made/${item}"]
      outs: [{"after-${item}": {persist: true}}]
  report: {cmd: cat made/a made/b made/c > report, deps: [made], outs: [report]}
"""
WORK = """
import os, pathlib, sys, time
name = sys.argv[1]
if name == "plan":
    for item in "abc":
        pathlib.Path("plan").mkdir(exist_ok=True)
        pathlib.Path("plan", item).write_text(item * 1000)
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


class Machines:
    """A small project at home, a folder as its remote, and workers in clones, all of one Prefect server."""

    def __init__(self, folder: Path, server: dict[str, str], pool: str) -> None:
        self.folder, self.server, self.pool = folder, server, pool
        (folder / "home").mkdir(parents=True)
        self.home = Project.at(folder / "home")
        shutil.copytree(ROOT / "flows", self.home.folder / "flows", ignore=shutil.ignore_patterns("__pycache__"))
        files = {
            "dvc.yaml": GRAPH, "work.py": WORK, "requirements.txt": f"prefect=={version('prefect')} \\\n    --hash=x\n",
            ".gitignore": "/plan\n/made\n/after-*\n/report\n/checkpoints\n__pycache__\n/prefect*\n",
        }  # fmt: skip
        for name, text in files.items():
            (self.home.folder / name).write_text(text)
        (folder / "steps").write_text("1")
        self.run("git", "init", "-q")
        self.run("dvc", "init", "-q")
        self.run("dvc", "remote", "add", "-q", "--default", "store", str(folder / "store"))
        self.commit()
        self.run("prefect", "work-pool", "create", pool, "--type", "process")

    def environment(self) -> dict[str, str]:
        return self.home.environment(
            **self.server, PYTHONPATH=str(ROOT), MADE=str(self.folder / "made"), PREFECT_WORKER_QUERY_SECONDS="1"
        )

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess:
        done = subprocess.run(
            command, cwd=self.home.folder, env=self.environment(), text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
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
                env=self.environment(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(30)

    def flow(self, *targets: str, silence: float = 45) -> list[str]:
        return ["python", "-c", FLOW, self.pool, str(silence), *targets]

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
        for name in ("dvc.lock", ".dvc/cache", "plan", "made", "report", *(f"after-{x}" for x in "ab")):
            path = self.home.folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.fixture
def machines(tmp_path: Path, with_prefect: dict[str, str]) -> Machines:
    return Machines(tmp_path, with_prefect, f"pool-{tmp_path.name}")


def wait_for(what: Callable[[], object], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_two_workers_make_what_one_machine_makes(machines: Machines) -> None:
    machines.run("dvc", "repro", "-q")
    alone = machines.lock()
    machines.forget()
    machines.made()
    with machines.worker("one"), machines.worker("two"):
        machines.run(*machines.flow())
        assert machines.lock() == alone
        assert "up to date" in machines.run("dvc", "status").stdout
        assert "Running stage" not in machines.run("dvc", "repro").stdout
        made = machines.made()
        assert sorted(name for name, *_ in made) == ["a", "b", "c"]
        assert {where for _, where, _ in made} == {"one", "two"}
        for name in ("one", "two"):  # left as it was, with nothing that it did not need
            git = subprocess.run(["git", "status", "--porcelain"], cwd=machines.folder / name, capture_output=True)
            assert not git.stdout
        assert not (machines.folder / "one/report").exists()

        machines.forget()  # another machine at home: all is in the remote
        machines.run(*machines.flow())
        assert not machines.made()
        assert machines.lock() == alone


def test_a_killed_worker_is_noticed_and_another_makes_its_stage(machines: Machines) -> None:
    (machines.folder / "steps").write_text("600")
    with machines.worker("one") as one:
        flow = machines.home.start("flow.log", *machines.flow("work@a", silence=15), **machines.server,
                                   PYTHONPATH=str(ROOT), MADE=str(machines.folder / "made"))  # fmt: skip
        wait_for(lambda: (machines.folder / "made").exists())
        ((name, where, _),) = machines.made()
        assert (name, where) == ("a", "one")
        os.killpg(one.pid, signal.SIGKILL)
        killed = time.monotonic()
        (machines.folder / "steps").write_text("1")
        with machines.worker("two"):
            wait_for(lambda: (machines.folder / "made").exists(), 60)
            assert time.monotonic() - killed < 60
            assert flow.wait(60) == 0, machines.home.log("flow.log")
    assert [where for _, where, _ in machines.made()] == ["two"]
    assert "it, or its machine, is gone" in machines.home.log("flow.log")


def test_what_cannot_be_sent_is_refused(machines: Machines) -> None:
    def told(pool: str | None = None) -> str:
        command = machines.flow("work@a")
        return machines.run(*command[:3], pool or machines.pool, *command[4:], check=False).stdout

    assert "there is no work pool `nowhere`; `prefect work-pool create nowhere" in told("nowhere")
    (machines.home.folder / "work.py").write_text("sys.exit()")
    (machines.home.folder / "more.py").write_text("")
    assert "this work tree is none: work.py, more.py; commit or stash" in told()
    machines.run("git", "stash", "-u")
    machines.run("dvc", "remote", "remove", "store")
    machines.commit()
    assert "this project has none: `dvc remote add --default" in told()


@pytest.mark.parametrize("fault", ["changed", "packages", "commit"])
def test_a_worker_that_cannot_stand_where_it_is_asked_to_says_so(machines: Machines, fault: str) -> None:
    clone = machines.clone("one")
    if fault == "changed":
        (clone / "work.py").write_text("print(1)")
        why = "has changes of its own: work.py"
    elif fault == "packages":
        (machines.home.folder / "requirements.txt").write_text("prefect==3.0.0\n")
        machines.commit()
        why = f"prefect is {version('prefect')} and not 3.0.0; `make .venv/ready` there"
    else:
        subprocess.run(["git", "remote", "set-url", "origin", str(clone)], cwd=clone, check=True)
        (machines.home.folder / "more").write_text("")
        machines.commit()
        why = "fetches from; `git push` it there"
    with machines.worker("one"):
        done = machines.run(*machines.flow("work@a"), check=False)
    assert done.returncode == 1
    assert why in done.stdout
    assert not machines.made()
