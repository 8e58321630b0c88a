"""The door to `flows.status`: Prefect is for flows alone, and flows come with a clone."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import cones
from cones.common.errors import ConesError


def become_status(arguments: Sequence[str]) -> None:
    """Let `flows.status` of the clone that this `cones` is of take this process's place; `ConesError` if there is none.

    What stands in the folder where one is, is not run.
    """
    clone = Path(cones.__file__).resolve().parent.parent
    if not (clone / "flows/status.py").is_file():
        raise ConesError(
            f"this cones, in {clone}, is installed without its flows; `cones status` wants a clone of the project: "
            "`make .venv/ready` there, and its .venv"
        )
    path = os.pathsep.join([str(clone), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-P", "-m", "flows.status", *arguments]
    os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": path})
