"""Running programs from a flow: streamed output, divided CPU cores, one stage a GPU, and none left behind."""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from cones.errors import MAY_PASS_CODE, ConesError
from cones.process import STOPPED_CODE

FLOW_PID = "CONES_FLOW_PID"
"""Names the flow's process to the stages it starts, which end with it."""
_running: set[subprocess.Popen] = set()
_ending = threading.Event()


class CommandFailed(ConesError):
    """A program ended badly. `may_pass` tells whether trying again makes sense."""

    def __init__(self, what: str, lines: list[str], returncode: int) -> None:
        told = [line for line in lines if line.lower().startswith("error:")] or lines[-1:]
        super().__init__(f"{what} failed: {' '.join(told) or f'exit code {returncode}'}")
        self.may_pass = not _ending.is_set() and _may_pass("\n".join(lines), returncode)


def _may_pass(output: str, returncode: int) -> bool:
    """Killed by a signal, a stage's own word that it may pass (its exit code, as DVC tells it), or DVC's lock.

    A signal n is told as -n, or as 128 + n by the shell that DVC runs a stage in or by the stage itself. Ctrl-C is a
    person's word, and no reason to try again.
    """
    codes = {returncode, *map(int, re.findall(r"exited with (-?\d+)", output))}
    if codes & {STOPPED_CODE, -signal.SIGINT}:
        return False
    killed = any(code < 0 or 128 < code <= 128 + signal.NSIG for code in codes)
    return killed or MAY_PASS_CODE in codes or "it is being blocked by" in output


def run_command(
    what: str,
    command: list[str],
    environment: Mapping[str, str],
    log: Callable[[str], None],
    cores: Sequence[int] = (),
) -> None:
    """Run a program of this Python's environment and log its lines as they come; raise `CommandFailed` if it fails.

    With `cores` it runs on those CPU cores only, where the system can do that. A stage that it starts ends with this
    process (`cones.process.die_with_parent`).
    """
    if _ending.is_set():
        raise CommandFailed(what, ["error: the flow is ending"], 1)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    full = {**os.environ, "PATH": path, FLOW_PID: str(os.getpid()), **environment}
    last: deque[str] = deque(maxlen=40)
    process = subprocess.Popen(
        command, env=full, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace",
    )  # fmt: skip
    _running.add(process)
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process.pid, cores)
    try:
        for line in process.stdout or ():
            if line.strip():
                last.append(line.strip())
                log(line.rstrip())
        if process.wait():
            raise CommandFailed(what, list(last), process.returncode)
    finally:
        _running.discard(process)


@contextmanager
def none_left_behind() -> Iterator[None]:
    """When the block ends, however it does, its programs end and no other one starts: a cancelled flow is over."""
    _ending.clear()
    try:
        yield
    finally:
        _ending.set()
        for process in list(_running):
            process.terminate()


def gpus() -> list[str]:
    """The GPUs that this process may use: those of CUDA_VISIBLE_DEVICES, else all that nvidia-smi names."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [g.strip() for g in given.split(",") if g.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()


@contextmanager
def one_gpu(names: list[str], interval: float = 0.5) -> Iterator[str]:
    """The first of these GPUs that no other process of this machine holds; waits until there is one.

    The lock is the system's own on a file, so it goes with this process however it ends.
    """
    while True:
        for name in names:
            path = Path(tempfile.gettempdir()) / f"cones-gpu-{re.sub(r'[^A-Za-z0-9-]', '_', name)}.lock"
            new = 0 if path.exists() else os.O_CREAT  # a file of another user may be opened, not created
            held = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | new, 0o644)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(held)
                continue
            try:
                yield name
            finally:
                os.close(held)
            return
        time.sleep(interval)
