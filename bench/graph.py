"""What the graph costs as a project grows: `dvc status`, reading the graph, and a `dvc repro` with nothing to do.

    python bench/graph.py [--commit COMMIT] [--counts 0 50 200] [--rounds 3] [--only before|after]

Before is a commit, after is what stands in this folder, committed or not; both in copies with a cache of their own. For
each count, that many concepts with a zero-shot row each are added to params.yaml. The first stage runs; what the others
make is made up, and committed to DVC, as only its files count here. Rounds are turn about, the least of each is kept.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import write_results
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
BEFORE = "43a9cd6"
COUNTS, ROUNDS = (0, 50, 200), 3
FIRST = ("check", "plan")
"""What the stage is called that reads params.yaml before all others: it runs."""
NOTHING = "Data and pipelines are up to date."
READ = (
    "import sys, time; from dvc.repo import Repo\n"
    "began = time.perf_counter(); Repo().index.graph; sys.stdout.write(str(time.perf_counter() - began))"
)
MADE_UP = """
from pathlib import Path
from dvc.repo import Repo
for stage in Repo().index.stages:
    for path in (Path(x.fs_path) for x in [*stage.outs, *stage.deps]):
        file = path if path.suffix else path / "made-up.txt"
        if not path.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(str(path))
"""
"""What no stage has made here: a file where a path has a suffix, else a folder with one."""


class Copy:
    """A copy of the project in a folder, and how long its commands take."""

    def __init__(self, folder: Path, commit: str | None) -> None:
        self.folder = folder
        subprocess.run(["git", "clone", "--quiet", "--no-checkout", str(ROOT), str(folder)], check=True)
        if commit:
            subprocess.run(["git", "checkout", "--quiet", "--detach", commit], cwd=folder, check=True)
        else:
            self._as_it_stands()
        self.params = (folder / "params.yaml").read_text()

    def _as_it_stands(self) -> None:
        """Bring over the files that git knows or does not ignore."""
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        for name in names:
            if (ROOT / name).is_file():  # what is gone is listed, too, until git is told
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.folder / name)

    def run(self, *command: str) -> tuple[float, str]:
        """Seconds that a command takes, and its output; it must succeed."""
        environment = {
            **os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder), "DVC_NO_ANALYTICS": "true",
            "DVC_SITE_CACHE_DIR": str(self.folder.parent / "site"),
        }  # fmt: skip
        began = time.perf_counter()
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        return seconds, done.stdout

    def grow(self, count: int) -> None:
        """Add concepts with a row each, and bring all up to date."""
        yaml = YAML()
        content = yaml.load(self.params)
        shipped = next(iter(content["concepts"].values()))
        for i in range(count):
            content["concepts"][f"more-{i}"] = dict(shipped)
            content["runs"][f"more-{i}-zero-shot"] = {"concept": f"more-{i}", "method": {"name": "zero_shot"}}
        yaml.dump(content, self.folder / "params.yaml")
        first = next(name for name in FIRST if name in yaml.load(self.folder / "dvc.yaml")["stages"])
        self.run("dvc", "repro", first)
        self.run(sys.executable, "-c", MADE_UP)
        self.run("dvc", "commit", "--quiet", "--force")
        self.idle("dvc", "status")

    def idle(self, *command: str) -> float:
        """Seconds of a command of DVC that finds nothing to do."""
        seconds, output = self.run(*command)
        if NOTHING not in output:
            raise SystemExit(f"{' '.join(command)} found something to do:\n{output[-3000:]}")
        return seconds

    def measure(self) -> dict[str, float]:
        """One round."""
        return {
            "status": self.idle("dvc", "status"),
            "graph": float(self.run(sys.executable, "-c", READ)[1]),
            "nothing_to_do": self.idle("dvc", "repro"),
        }


def measure_all(copies: dict[str, Copy], counts: Sequence[int], rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """The least seconds by copy, count and what was measured."""
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in copies}
    for count in counts:
        for copy in copies.values():
            copy.grow(count)
        measured = [{name: copy.measure() for name, copy in copies.items()} for _ in range(rounds)]
        for name in copies:
            found[name][str(count)] = {
                what: round(min(turn[name][what] for turn in measured), 3) for what in measured[0][name]
            }
            print(name, count, found[name][str(count)], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default=BEFORE, help="what is before")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", choices=["before", "after"], help="measure that alone, and write no results")
    asked = parser.parse_args()
    with TemporaryDirectory() as folder:
        sides = {"before": asked.commit, "after": None}
        chosen = {name: commit for name, commit in sides.items() if asked.only in (None, name)}
        copies = {name: Copy(Path(folder) / name / "project", commit) for name, commit in chosen.items()}
        found: dict[str, Any] = dict(measure_all(copies, asked.counts, asked.rounds))
    if asked.only:
        return
    most = str(max(asked.counts))
    before, after = found["before"][most], found["after"][most]
    write_results(
        "graph",
        {
            "what": f"seconds, the least of {asked.rounds} rounds turn about; `graph` is the call Repo().index.graph "
            "in a process of its own, without its imports; the others are whole commands",
            "dvc": version("dvc"),
            "before_commit": asked.commit,
            **found,
            f"speedup_at_{most}": {what: round(before[what] / after[what], 2) for what in before},
        },
    )


if __name__ == "__main__":
    main()
