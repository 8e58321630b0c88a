"""What `kill -9` at a random moment leaves: every kind of stage of all three tasks and `cones register`, killed and run
again, must end with the same bits.

    python bench/kills.py [ROUNDS] [SEED]

Everything runs in copies of a small project that was finished once, without what the killed stage and those after it
made. A round kills the whole process group, or the stage alone, or `dvc` alone.
"""

import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from common import write_results
from ruamel.yaml import YAML

from cones.common.files import file_hash

ROOT = Path(__file__).parent.parent
PARAMS = """
data:
  glyphs: {kind: world, source: cones/synthetic, vocabulary: novel, train: 4, val: 2, test: 2}
  scenes: {kind: scenes, source: cones/synthetic, vocabulary: novel, train: 20, val: 10, test: 10}
  zorb: {kind: subject_world, source: cones/synthetic, thing: zorb, colour: purple, train: 3, val: 2, test: 2}
concepts:
  glyphs: {task: classification, backbone: clip-tiny, data: glyphs, shots: 4}
  scenes: {task: segmentation, backbone: glip-tiny, data: scenes, shots: 1}
  zorb: {task: generation, backbone: sd-tiny, data: zorb, word: flower, views: 2, samples: 2, sampling_steps: 2,
         prompts: ["a red {}"]}
runs:
  glyphs-coop: {concept: glyphs, method: {name: coop, n_ctx: 2, epochs: 20, checkpoint_seconds: 0.2}}
  scenes-cones:
    {concept: scenes, method: {name: cones, epochs: 10, batch_size: 4, validate_every: 5, checkpoint_seconds: 0.2}}
  zorb-cones:
    concept: zorb
    method: {name: cones, epochs: 40, batch_size: 2, validate_every: 10, sample_every: 10, checkpoint_seconds: 0.2}
finetunes:
  scenes-head:
    {concept: scenes, from: scenes-cones, kind: head, steps: 8, validate_every: 4, checkpoint_seconds: 0.2}
  zorb-lora:
    {concept: zorb, from: zorb-cones, kind: lora, steps: 10, validate_every: 5, batch_size: 2, checkpoint_seconds: 0.2}
"""
CHAINS = [
    ["prepare@glyphs", "encode@glyphs", "search@glyphs-coop", "evaluate@glyphs"],
    ["prepare@scenes", "encode@scenes", "search@scenes-cones", "finetune@scenes-head", "evaluate@scenes"],
    ["prepare@zorb", "encode@zorb", "search@zorb-cones", "finetune@zorb-lora", "evaluate@zorb"],
]
REPRO, REGISTER = ("dvc", "repro"), ("cones", "register")
TARGETS = [*(stage for chain in CHAINS for stage in chain), "report", "register"]
KINDS = ("group", "stage", "dvc")
PATIENCE = 900
"""Seconds after which a command counts as hanging."""
RUNNING = re.compile(r"Running stage '(.+)':")
MADE = ("data/prepared", "encoded", "searched", "evaluated", "results")


class Command:
    """A command of the project under way, with the lines that it has printed."""

    def __init__(self, project: Path, *command: str) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(project), "PYTHONUNBUFFERED": "1",
                       "DVC_NO_ANALYTICS": "true"}  # fmt: skip
        self.log, self.began = project.parent / f"{project.name}.log", time.monotonic()
        with self.log.open("w") as log:
            self.process = psutil.Popen(
                command, cwd=project, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def stages(self) -> list[str]:
        """The stages that DVC has begun."""
        return RUNNING.findall(self.output)

    def finish(self) -> int:
        """Its exit code; if this is interrupted, nothing of it goes on."""
        try:
            return self.process.wait(PATIENCE)
        except BaseException:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise

    def starts(self) -> dict[str, float]:
        """Seconds that each stage took until the next one began, once it has ended well."""
        at: dict[str, float] = {}
        while self.process.poll() is None:
            for stage in self.stages:
                at.setdefault(stage, time.monotonic())
            time.sleep(0.02)
        assert self.finish() == 0, self.output[-3000:]
        ends = [*list(at.values())[1:], time.monotonic()]
        return {stage: end - start for (stage, start), end in zip(at.items(), ends)}

    def kill(self, kind: str) -> bool:
        """SIGKILL to the whole group, to what the command started, or to the command alone; False if none is left."""
        if self.process.poll() is not None:
            return False
        inside = self.process.children(recursive=True)
        processes = {"group": [self.process, *inside], "stage": inside, "dvc": [self.process]}[kind]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.finish()
        return bool(processes)


def make_project(project: Path) -> None:
    """The project at this commit, with small data and few rows."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(project)], check=True)
    yaml = YAML()
    shipped = yaml.load(project / "params.yaml")
    yaml.dump({"backbones": shipped["backbones"], **yaml.load(PARAMS)}, project / "params.yaml")


def forget(project: Path, target: str) -> None:
    """Take away what a stage and those after it made, and what DVC knows of them."""
    after = next((chain[chain.index(target) :] for chain in CHAINS if target in chain), [])
    lock = YAML().load(project / "dvc.lock")
    for stage in [*after, "report"]:
        for out in lock["stages"].pop(stage)["outs"]:
            path = project / out["path"]
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    YAML().dump(lock, project / "dvc.lock")
    shutil.rmtree(project / ".dvc/cache/runs")


def bits(project: Path) -> dict[str, Any]:
    """Hashes of all that the stages made, and what is registered; times, memory and the page with them are left out."""
    files = (p for name in MADE for p in (project / name).rglob("*") if p.is_file())
    left_out = ("cost.json", "verified.json", ".html", ".tmp")
    paths = (p for p in files if not str(p).endswith(left_out) and ".tmp/" not in str(p))
    found: dict[str, Any] = {str(p.relative_to(project)): file_hash(p) for p in paths}
    summary = json.loads((project / "results/summary.json").read_text())
    found["results/summary.json"] = [{k: v for k, v in line.items() if k != "cost"} for line in summary]
    return found | (registry(project) if (project / "mlflow.db").exists() else {})


def registry(project: Path) -> dict[str, Any]:
    """What each version holds, how many runs there are, and the champions' rows."""
    tag = "SELECT value FROM model_version_tags t WHERE t.name = v.name AND t.version = v.version AND t.key ="
    with sqlite3.connect(project / "mlflow.db") as store:
        versions = f"SELECT ({tag} 'cones.row'), ({tag} 'cones.key') FROM model_versions v ORDER BY 1"
        champions = f"SELECT v.name, ({tag} 'cones.row') FROM registered_model_aliases v ORDER BY 1"
        runs = "SELECT count(*) FROM runs WHERE lifecycle_stage = 'active' AND status = 'FINISHED'"
        return {name: store.execute(query).fetchall() for name, query in
                (("versions", versions), ("champions", champions), ("runs", runs))}  # fmt: skip


def leftovers(project: Path) -> list[str]:
    """Half-written files, checkpoints of rows that are done, and processes of the project that are still there."""
    half = [p for p in project.rglob(".*.tmp") if ".dvc" not in p.parts]
    states = [p for p in (project / "checkpoints").glob("*/") if p.name != "locks"]
    alive = [p for p in psutil.process_iter(["cwd", "cmdline"]) if p.info["cwd"] == str(project)]
    return [*(str(p.relative_to(project)) for p in [*half, *states]), *(" ".join(p.info["cmdline"]) for p in alive)]


def play(finished: Path, command: tuple[str, ...], target: str, kind: str, at: float, expected: dict) -> dict[str, Any]:
    """A round: kill the target some seconds after its start, run the command again, and compare."""
    project = finished.parent / "round"
    shutil.rmtree(project, ignore_errors=True)
    shutil.copytree(finished, project, symlinks=True)
    if command == REPRO:
        forget(project, target)
    killed = Command(project, *command)
    while command == REPRO and target not in killed.stages:
        assert killed.process.poll() is None, killed.output[-3000:]
        time.sleep(0.02)
    time.sleep(at)
    late = not killed.kill(kind)
    before, again = killed.stages, Command(project, *command)
    code, output = again.finish(), again.output
    found = bits(project) if code == 0 else {}
    differ = sorted(name for name in {*expected, *found} if found.get(name) != expected.get(name))
    return {
        "target": target, "killed": (before or [target])[-1], "kind": kind, "at_seconds": round(at, 2), "late": late,
        "code": code, "same_bits": code == 0 and not differ, "differ": differ[:5], "leftovers": leftovers(project),
        "stages_again": len(set(before) & set(again.stages)), "resumed": "resuming" in output,
        **({} if code == 0 else {"output": output[-2000:]}),
    }  # fmt: skip


def main(rounds: int = 20, seed: int = 0) -> None:
    rng = random.Random(seed)
    targets = [t for _ in range(rounds // len(TARGETS) + 1) for t in rng.sample(TARGETS, len(TARGETS))][:rounds]
    with TemporaryDirectory() as folder:
        finished, registered = Path(folder) / "finished", Path(folder) / "registered"
        make_project(finished)
        seconds = Command(finished, *REPRO).starts()
        shutil.copytree(finished, registered, symlinks=True)
        register = Command(registered, *REGISTER)
        assert register.finish() == 0, register.output
        seconds["register"] = time.monotonic() - register.began
        expected, lines = {REPRO: bits(finished), REGISTER: bits(registered)}, []
        for i, target in enumerate(targets):
            command = REGISTER if target == "register" else REPRO
            while True:  # a kill that came too late is no kill
                kind = KINDS[i % len(KINDS)] if command == REPRO else "group"
                at = rng.random() * seconds[target]
                line = play(finished, command, target, kind, at, expected[command])
                if not line["late"]:
                    break
            lines.append(line)
            print(json.dumps(line), flush=True)
    write_results(
        "kills",
        {
            "what": "kill -9 at a random moment of a stage or of `cones register`, and the same command again",
            "seed": seed,
            "rounds": rounds,
            "same_bits": sum(line["same_bits"] for line in lines),
            "by_kind": dict(Counter(line["kind"] for line in lines)),
            "resumed": sum(line["resumed"] for line in lines),
            "with_leftovers": sum(bool(line["leftovers"]) for line in lines),
            "stage_seconds": {stage: round(s, 2) for stage, s in seconds.items()},
            "each": lines,
        },
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
