"""What workers save and cost: searches with one worker and with two, a stage sent away against one made at home, a
worker that is killed, many stages, and the bytes that travel.

    python bench/machines.py            everything, into bench/results/machines.json
    python bench/machines.py --small    the same at small size, printed

Clones of the project on this machine stand for machines: each has a DVC cache of its own, and its worker one CPU core.
A folder is DVC's remote. Each round is another commit, at which nothing was made before.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from common import write_results
from flow import classification_alone, prefect_server, run
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
POOL, CONCEPT, ROWS = "bench", "glyphs-novel", 8
QUERY_SECONDS = "2"
"""How often a worker asks for work; Prefect's own default is 10."""
SHORT = 2
"""Epochs of a search that is over when its imports are."""
TINY = """
stages:
  tiny:
    foreach: [{names}]
    do:
      cmd: echo ${{item}} {mark} > made-${{item}}
      deps: [README.md]
      meta: {{gpu: true}}
      outs: ["made-${{item}}": {{persist: true}}]
"""
FLOW = """
import json, sys, time
from dataclasses import replace
from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner
from flows.errands import Pool
from flows.graph import stage_graph
from flows.pipeline import run_stages
from flows.processes import Programs

pool, at_once, *names = sys.argv[1:]

@flow(task_runner=ThreadPoolTaskRunner())
def some():
    graph = {n: replace(s, needs=()) for n, s in stage_graph(names).items() if n in names}
    began = time.perf_counter()
    with Programs() as programs:
        assert run_stages(graph, int(at_once), programs, Pool(pool) if pool else None) == []
    return time.perf_counter() - began

open("seconds", "w").write(str(some()))
"""


@dataclass
class Team:
    """A project at home, its remote beside it, and clones that work for it."""

    folder: Path
    server: dict[str, str]

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def commit(self) -> None:
        """All but dvc.lock, whose lines have to travel by themselves."""
        (self.home / ".git/info/exclude").write_text("seconds\ncount\n")
        run(self.home, "git", "add", "-A")
        run(self.home, "git", "reset", "-q", "--", "dvc.lock")
        run(self.home, "git", "-c", "user.name=bench", "-c", "user.email=bench@localhost", "commit", "-qm", "a round")

    @contextmanager
    def worker(self, name: str, core: int) -> Iterator[psutil.Popen]:
        """A worker on one core, in a fresh clone; yielded once it has said that it is there."""
        clone, path = self.folder / name, f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        run(self.folder, "git", "clone", "--quiet", str(self.home), name)
        environment = {**os.environ, **self.server, "PATH": path, "PREFECT_WORKER_QUERY_SECONDS": QUERY_SECONDS,
                       "PYTHONPATH": ".", "DO_NOT_TRACK": "1", "DVC_NO_ANALYTICS": "true"}  # fmt: skip
        command = ["taskset", "-c", str(core), "prefect", "worker", "start", "--pool", POOL, "--name", name]
        with (self.folder / f"{name}.log").open("w") as log:
            worker = psutil.Popen([*command, "--limit", "1"], cwd=clone, env=environment, stdout=log, stderr=log)
        try:
            while "started" not in (self.folder / f"{name}.log").read_text():
                if worker.poll() is not None:
                    raise SystemExit((self.folder / f"{name}.log").read_text())
                time.sleep(0.2)
            yield worker
        finally:
            _kill(worker)

    def start(self, names: list[str], workers: int) -> subprocess.Popen:
        """Begin to make stages: on workers, or with none at home on one core."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        command = [sys.executable, "-c", FLOW, POOL if workers else "", str(workers or 1), *names]
        with (self.folder / "flow.log").open("w") as log:
            return subprocess.Popen(
                command if workers else ["taskset", "-c", "0", *command], cwd=self.home, stdout=log, stderr=log,
                env={**os.environ, **self.server, "PATH": path, "PYTHONPATH": ".", "DO_NOT_TRACK": "1"},
            )  # fmt: skip

    def seconds(self, names: list[str], workers: int) -> float:
        """From the first stage's start to the last one's end."""
        if self.start(names, workers).wait():
            raise SystemExit((self.folder / "flow.log").read_text()[-5000:])
        return float((self.home / "seconds").read_text())


@contextmanager
def team(folder: Path) -> Iterator[Team]:
    """The project with its classification concept alone."""
    folder.mkdir()
    with prefect_server(folder / "prefect") as server:
        made = Team(folder, server)
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(made.home)], check=True)
        classification_alone(made.home)
        run(made.home, "dvc", "remote", "add", "--default", "store", str(folder / "store"))
        made.commit()
        run(made.home, "prefect", "work-pool", "create", POOL, "--type", "process", **server)
        yield made


def new_round(team: Team, number: int, epochs: int) -> list[str]:
    """Commit rows that nobody has searched; the stages that search them."""
    yaml, path = YAML(), team.home / "params.yaml"
    content = yaml.load(path)
    rates = [0.002 * (1 + 0.01 * number + 0.1 * i) for i in range(ROWS)]
    method = {"name": "coop", "patience": None, "epochs": epochs}
    content["runs"] = {f"row-{i}": {"concept": CONCEPT, "method": {**method, "lr": lr}} for i, lr in enumerate(rates)}
    yaml.dump(content, path)
    team.commit()
    run(team.home, "dvc", "repro", "plan", f"encode@{CONCEPT}")
    return [f"search@row-{i}" for i in range(ROWS)]


def two_workers(team: Team, epochs: int) -> dict[str, Any]:
    took = {}
    for workers in (1, 2):
        names = new_round(team, workers, epochs)
        with ExitStack() as stack:
            for core in range(workers):
                stack.enter_context(team.worker(f"searching-{workers}-{core}", core))
            took[workers] = team.seconds(names, workers)
    costs = [json.loads((_row(team, i) / "cost.json").read_text())["search_seconds"] for i in range(ROWS)]
    return {"searches": ROWS, "search_seconds": [round(s, 1) for s in costs], "speedup": round(took[1] / took[2], 3),
            "seconds": {f"{n}_workers": round(s, 1) for n, s in took.items()}}  # fmt: skip


def overheads(team: Team) -> dict[str, Any]:
    """A short search, and eight that are ready together, away and at home; what travels for one."""
    took = {}
    for number, (count, workers) in enumerate([(1, 0), (1, 1), (ROWS, 0), (ROWS, 1)], 3):
        names = new_round(team, number, SHORT)[:count]
        with team.worker(f"short-{number}", 0) as _:
            took[count, workers] = team.seconds(names, workers)
        if (count, workers) == (1, 1):
            travelled = _travelled(team, names[0], team.folder / f"short-{number}/.dvc/cache/files")
    return {
        "overhead_per_stage_seconds": round(took[1, 1] - took[1, 0], 2),
        "overhead_together_seconds": round((took[ROWS, 1] - took[ROWS, 0]) / ROWS, 2),
        "short_stage_seconds": {"at_home": round(took[1, 0], 2), "away": round(took[1, 1], 2)},
        "eight_short_stages_seconds": {"at_home": round(took[ROWS, 0], 2), "away": round(took[ROWS, 1], 2)},
        "bytes_a_stage": travelled,
    }


def killed(team: Team, epochs: int) -> dict[str, Any]:
    """Seconds from `kill -9` of a worker in mid-search, and of all that it started, until the search runs elsewhere."""
    name = new_round(team, 7, epochs)[0]
    clones = ["killed-0", "killed-1"]
    with team.worker(clones[0], 0) as first, team.worker(clones[1], 1) as second:
        flow = team.start([name], 1)
        while not (running := [c for c in clones if _searches(team.folder / c)]):
            _still(flow, team)
        time.sleep(5)
        began = time.monotonic()
        _kill(first if running[0] == clones[0] else second)
        (other,) = set(clones) - set(running)
        while not _searches(team.folder / other):
            _still(flow, team)
        seconds = time.monotonic() - began
        if flow.wait():
            raise SystemExit((team.folder / "flow.log").read_text()[-5000:])
    return {"seconds_until_a_killed_workers_stage_runs_again": round(seconds, 1)}


def many(team: Team, counts: tuple[int, ...]) -> dict[str, Any]:
    """Seconds a stage, sent away and at home, of graphs of stages that do next to nothing."""
    (team.home / "studies/dvc.yaml").unlink()
    with (team.home / ".gitignore").open("a") as ignored:
        ignored.write("\nmade-*\n")
    found: dict[str, Any] = {}
    for count in counts:
        for workers in (0, 1):
            names = ", ".join(f"s{i}" for i in range(count))
            (team.home / "dvc.yaml").write_text(TINY.format(names=names, mark=f"{count} {workers}"))
            (team.home / "dvc.lock").unlink(missing_ok=True)
            team.commit()
            with team.worker(f"many-{count}-{workers}", 0):
                seconds = team.seconds([f"tiny@s{i}" for i in range(count)], workers) / count
            found.setdefault(str(count), {})["away" if workers else "at_home"] = round(seconds, 2)
    for times in found.values():
        times["overhead"] = round(times["away"] - times["at_home"], 2)
    return {"many_stages_seconds_a_stage": found}


def _travelled(team: Team, name: str, cache: Path) -> dict[str, int]:
    """Bytes that a stage needs and makes by dvc.lock, those in the worker's cache, and all that home's cache has."""
    line = YAML(typ="safe").load(team.home / "dvc.lock")["stages"][name]
    needs = sum(
        dep["size"] for dep in line["deps"] if not (team.home / dep["path"]).is_relative_to(team.home / "models")
    )
    makes = sum(out["size"] for out in line["outs"])
    return {
        "needs": needs,
        "makes": makes,
        "in_the_workers_cache": _size(cache),
        "at_home": _size(team.home / ".dvc/cache"),
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _row(team: Team, number: int) -> Path:
    return team.home / "searched" / CONCEPT / f"row-{number}"


def _searches(clone: Path) -> bool:
    """Whether a search runs in a clone."""
    for process in psutil.process_iter(["cmdline", "cwd"]):
        if "stages/search.py" in (process.info["cmdline"] or ()) and process.info["cwd"] == str(clone):
            return True
    return False


def _still(flow: subprocess.Popen, team: Team) -> None:
    """Wait a little for what a flow under way has to do."""
    if flow.poll() is not None:
        raise SystemExit(f"the flow has ended\n{(team.folder / 'flow.log').read_text()[-5000:]}")
    time.sleep(0.2)


def _kill(worker: psutil.Popen) -> None:
    if worker.is_running():
        for process in [*worker.children(recursive=True), worker]:
            process.kill()
        worker.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a few minutes, printed and not written")
    parser.add_argument("--epochs", type=int, default=600, help="of the long searches: at least a minute each")
    asked = parser.parse_args()
    epochs = 20 if asked.small else asked.epochs
    with TemporaryDirectory() as folder, team(Path(folder).resolve() / "team") as made:
        results = {"what": f"seconds; a worker has one core and asks for work every {QUERY_SECONDS} seconds"}
        for measure in (
            lambda: two_workers(made, epochs),
            lambda: overheads(made),
            lambda: killed(made, 10 * epochs if asked.small else epochs),
            lambda: many(made, (4, 8) if asked.small else (20, 200)),
        ):
            results |= (found := measure())
            print(json.dumps(found, indent=2), flush=True)
    if not asked.small:
        write_results("machines", results)


if __name__ == "__main__":
    main()
