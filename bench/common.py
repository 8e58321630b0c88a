"""What every bench does: a folder for what it makes, and results that say where they come from."""

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cones.files import write_json

RESULTS = Path(__file__).parent / "results"
WORK = Path("cache/bench")


def write_results(name: str, results: dict[str, Any]) -> None:
    """Write `bench/results/<name>.json` with the machine, the versions and the commit."""
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    model = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    about = {
        "machine": {"cpu": model[0] if model else platform.processor(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version()}
        | {p: version(p) for p in ("torch", "transformers", "accelerate")},
        "commit": git.stdout.strip(),
    }
    write_json(RESULTS / f"{name}.json", about | results)
    print(json.dumps(results, indent=2))


def spread(values: list[float]) -> dict[str, Any]:
    """Mean and sample standard deviation of some runs, and the runs."""
    mean = sum(values) / len(values)
    deviation = (sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1)) ** 0.5
    return {"mean": round(mean, 4), "std": round(deviation, 4), "runs": [round(v, 4) for v in values]}
