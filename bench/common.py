"""What benches share: a folder for what they make, kept measurements, a grid of rates, and results that say where they
come from."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cones.common.files import content_hash, folder_hash, read_json, write_json

if TYPE_CHECKING:
    import torch

HERE = Path(__file__).parent
RESULTS = HERE / "results"
WORK = Path("cache/bench")
FACTOR, FIRST, MORE = 4.0, 6, 4
"""Of a grid of rates: from one to the next, how many there are at first, and how many are added at most."""


def now(device: "torch.device | str") -> float:
    """Seconds of a clock, once a device has done what it was given."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def card() -> dict[str, Any]:
    """What a measurement on the GPU has to say of it; empty without one."""
    import torch

    if not torch.cuda.is_available():
        return {}
    of = torch.cuda.get_device_properties(0)
    return {"gpu": of.name, "gpu_memory_mb": round(of.total_memory / 2**20), "cuda": torch.version.cuda}


def write_results(name: str, results: dict[str, Any]) -> None:
    """Write `bench/results/<name>.json`, or `<name>_gpu.json` where there is a GPU, with the machine, the versions and
    the commit."""
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    model = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    about = {
        "machine": {"cpu": model[0] if model else platform.processor(), "cores": os.cpu_count()} | card(),
        "versions": {"python": platform.python_version()}
        | {p: version(p) for p in ("torch", "transformers", "accelerate")},
        "commit": git.stdout.strip(),
    }
    write_json(RESULTS / f"{name}{'_gpu' if card() else ''}.json", about | results)
    print(json.dumps(results, indent=2))


def spread(values: list[float]) -> dict[str, Any]:
    """Mean and sample standard deviation of some runs, and the runs."""
    mean = sum(values) / len(values)
    deviation = (sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1)) ** 0.5
    return {"mean": round(mean, 4), "std": round(deviation, 4), "runs": [round(v, 4) for v in values]}


def key_of(bench: str, *settings: Any) -> str:
    """Names a measurement by its settings and the code that it was made with: the package's and that of `bench`."""
    package = HERE.parent / "cones"
    code = folder_hash(HERE.parent, [*package.rglob("*.py"), HERE / "common.py", *HERE.glob(f"{bench}*.py")])
    return content_hash([code, *settings])[:16]


def kept(path: Path, measure: Callable[[], Any]) -> Any:
    """The JSON at `path`, or what `measure` gives, written there: a bench that was stopped goes on after its last."""
    if not path.exists():
        write_json(path, measure())
    return read_json(path)


def best_rate(lowest: float, judge: Callable[[float], Any]) -> tuple[float, dict[float, Any]]:
    """The rate whose judgement is the least, and what was judged, by rate.

    `FIRST` rates from the lowest on are tried, each `FACTOR` times the one before; while the best is at an end of the
    grid one more is tried there, `MORE` at most. The grid is wide from the start, as rates close together differ by
    less than the noise of a judgement.
    """
    tried = {rate: judge(rate) for rate in (lowest * FACTOR**i for i in range(FIRST))}
    for _ in range(MORE):
        best, low, high = min(tried, key=tried.__getitem__), min(tried), max(tried)
        if low < best < high:
            break
        rate = low / FACTOR if best == low else high * FACTOR
        tried[rate] = judge(rate)
    return min(tried, key=tried.__getitem__), dict(sorted(tried.items()))
