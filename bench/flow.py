"""What the flow costs and saves: against plain `dvc repro`, side by side against one after the other, and look-ups.

    python bench/flow.py

Everything runs in a copy of the project, by the project's own commands, on a Prefect server that is already up.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from common import spread, write_results
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
ROUNDS = 3
ROWS = 6
MADE = (
    "plan",
    "data/prepared",
    "encoded",
    "searched",
    "evaluated",
    "results",
    "checkpoints",
    "cache",
    ".dvc/cache",
    ".dvc/tmp",
)


def run(project: Path, *command: str, **environment: str) -> float:
    """Seconds that a command takes in the project; it must succeed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "PYTHONPATH": str(project), "DO_NOT_TRACK": "1", **environment}
    began = time.perf_counter()
    done = subprocess.run(command, cwd=project, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return time.perf_counter() - began


@contextmanager
def prefect_server(folder: Path):
    """A Prefect server of its own, with a password of its own; yields what its clients' environment has."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    password = f"bench:{secrets.token_urlsafe(32)}"
    environment = {**os.environ, "PREFECT_HOME": str(folder), "DO_NOT_TRACK": "1",
                   "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_SERVER_API_AUTH_STRING": password}  # fmt: skip
    server = psutil.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=2):
                break
            time.sleep(0.2)
        url = f"http://127.0.0.1:{port}/api"
        yield {"PREFECT_API_URL": url, "PREFECT_HOME": str(folder), "PREFECT_API_AUTH_STRING": password}
    finally:
        for process in [*server.children(recursive=True), server]:
            process.kill()


def clean(project: Path) -> None:
    """Back to what a fresh clone holds."""
    for name in MADE:
        shutil.rmtree(project / name, ignore_errors=True)
    subprocess.run(["git", "checkout", "--quiet", "dvc.lock"], cwd=project, check=True)


def classification_alone(project: Path) -> int:
    """Leave the rows of the classification concept in params.yaml, for good; how many stages a flow has for them."""
    yaml = YAML()
    path = project / "params.yaml"
    content = yaml.load(path)
    kept = {name: c for name, c in content["concepts"].items() if c["task"] == "classification"}
    content["concepts"] = kept
    content["runs"] = {name: row for name, row in content["runs"].items() if row["concept"] in kept}
    content["finetunes"] = {}
    content["data"] = {name: content["data"][name] for name in (c["data"] for c in kept.values())}
    yaml.dump(content, path)
    run(project, "git", "-c", "user.name=bench", "-c", "user.email=bench@localhost", "commit", "-qam", "one concept")
    code = "from flows.graph import stage_graph; open('count', 'w').write(str(len(stage_graph())))"
    run(project, sys.executable, "-c", code)
    return int((project / "count").read_text())


def six_rows(project: Path) -> list[str]:
    """Independent rows: the same method at six learning rates, long enough for a search to outweigh its start."""
    yaml = YAML()
    path = project / "params.yaml"
    content = yaml.load(path)
    method = {"name": "coop", "patience": None, "epochs": 100}
    content["runs"] = {
        f"row-{i}": {"concept": "glyphs-novel", "method": {**method, "lr": 0.002 * 2**i}} for i in range(ROWS)
    }
    yaml.dump(content, path)
    return [f"search@row-{i}" for i in range(ROWS)]


def searches(project: Path, names: list[str]) -> None:
    """Forget what the searches made, and nothing else."""
    shutil.rmtree(project / "searched", ignore_errors=True)
    shutil.rmtree(project / ".dvc/cache/runs", ignore_errors=True)
    lock = YAML().load(project / "dvc.lock")
    for name in names:
        lock["stages"].pop(name, None)
    YAML().dump(lock, project / "dvc.lock")


def side_by_side(project: Path, names: list[str], parallel: int, **environment: str) -> float:
    """Seconds of the flow's scheduler over some stages, from the first one's start to the last one's end."""
    code = (
        "import time; from prefect import flow; from prefect.task_runners import ThreadPoolTaskRunner\n"
        "from flows.graph import stage_graph; from flows.pipeline import run_stages\n"
        "from flows.processes import Programs\n"
        "@flow(task_runner=ThreadPoolTaskRunner())\n"
        f"def some():\n    graph = stage_graph({names!r})\n    began = time.perf_counter()\n"
        f"    assert run_stages(graph, {parallel}, Programs()) == []\n    return time.perf_counter() - began\n"
        "open('seconds', 'w').write(str(some()))"
    )
    run(project, sys.executable, "-c", code, **environment)
    return float((project / "seconds").read_text())


def main() -> None:
    with TemporaryDirectory() as folder, prefect_server(Path(folder) / "prefect") as server:
        project = Path(folder) / "project"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(project)], check=True)
        stages = classification_alone(project)
        flow = (sys.executable, "-m", "flows.pipeline")
        plain, sequential, default, register = [], [], [], []
        for _ in range(ROUNDS):
            clean(project)
            plain.append(run(project, "dvc", "repro"))
            register.append(run(project, "cones", "register"))
            (project / "mlflow.db").unlink()
            for times, more in ((sequential, ("--parallel", "1")), (default, ())):
                clean(project)
                times.append(run(project, *flow, *more, **server))
                (project / "mlflow.db").unlink()
        over = [(f - p - r) / stages for f, p, r in zip(sequential, plain, register)]
        over_parallel = [(f - p - r) / stages for f, p, r in zip(default, plain, register)]

        names = six_rows(project)
        run(project, "dvc", "repro", *names)
        one, two = [], []
        for _ in range(ROUNDS):
            for times, parallel in ((one, 1), (two, os.cpu_count() or 1)):
                searches(project, names)
                times.append(side_by_side(project, names, parallel, **server))

        run(project, "git", "checkout", "params.yaml", "dvc.lock")
        shutil.rmtree(project / "searched")
        run(project, *flow, **server)
        cold = [run(project, "cones", "lookup", "glyphs-novel") for _ in range(ROUNDS)]
        code = (
            "import time; from cones.registry.versions import look_up\n"
            "look_up('glyphs-novel'); began = time.perf_counter()\n"
            "for _ in range(20): look_up('glyphs-novel')\n"
            "open('seconds', 'w').write(str((time.perf_counter() - began) / 20))"
        )
        warm = []
        for _ in range(ROUNDS):
            run(project, sys.executable, "-c", code)
            warm.append(float((project / "seconds").read_text()))
    write_results(
        "flow",
        {
            "what": "seconds; each round turn about on one machine, Prefect server already up",
            "stages": stages,
            "dvc_repro_seconds": spread(plain),
            "cones_register_seconds": spread(register),
            "flow_one_at_a_time_seconds": spread(sequential),
            "flow_seconds": spread(default),
            "overhead_per_stage_seconds": spread(over)["mean"],
            "overhead_per_stage": {"one_at_a_time": spread(over), "as_shipped": spread(over_parallel)},
            "rows": ROWS,
            "rows_one_after_the_other_seconds": spread(one),
            "rows_side_by_side_seconds": spread(two),
            "speedup": round(sum(one) / sum(two), 3),
            "lookup_cold_seconds": spread(cold),
            "lookup_warm_seconds": spread(warm),
        },
    )


if __name__ == "__main__":
    main()
