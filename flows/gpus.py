"""The GPUs that a flow may use, and one stage at a time on each of them, on the whole machine."""

import fcntl
import os
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cones.common.errors import ConesError

LOCK_FOLDERS = (Path("/run/lock"), Path("/dev/shm"), Path("/tmp"))
"""Where locks may be: folders of the machine, not of a user as TMPDIR's."""


def gpus() -> list[str]:
    """The GPUs that this process may use: those of CUDA_VISIBLE_DEVICES, else all that nvidia-smi names.

    By their UUID where nvidia-smi tells it, so that one GPU has one name whoever asks; a number counts as nvidia-smi's.
    """
    known = _installed()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return list(known.values())
    names = [g.strip() for g in given.split(",") if g.strip() not in ("", "-1")]
    return list(dict.fromkeys(known.get(name) or _whole(name, known) for name in names))


def _installed() -> dict[str, str]:
    """The UUIDs of this machine's GPUs by their numbers."""
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = told.stdout.splitlines() if told.returncode == 0 else []  # else it says that there is none
    pairs = (line.split(",") for line in lines if "," in line)
    return {number.strip(): uuid.strip() for number, uuid in pairs}


def _whole(name: str, known: dict[str, str]) -> str:
    """A UUID of which the beginning is given, as CUDA allows; any other name as it is."""
    begun = [uuid for uuid in known.values() if name.startswith("GPU-") and uuid.startswith(name)]
    return begun[0] if len(begun) == 1 else name


def lock_folder() -> Path:
    """The first of `LOCK_FOLDERS` that every user may write to, so that all processes of a machine choose the same."""
    usable = (f for f in LOCK_FOLDERS if f.is_dir() and f.stat().st_mode & stat.S_IWOTH)
    return next(usable, LOCK_FOLDERS[-1])


@contextmanager
def some_gpus(names: list[str], count: int, interval: float = 0.5) -> Iterator[list[str]]:
    """The first `count` of these GPUs that no other process of this machine holds; waits until there are so many.
    `ConesError` where these are fewer.

    The locks are the system's own on files, so they go with this process however it ends. Who wants several GPUs keeps
    those that it has while it waits for the others; only one at a time does so, so that no two wait for each other.
    """
    if count > len(names):
        raise ConesError(
            f"a row with `processes: {count}` wants {count} GPUs, and there are {len(names)} here; lower `processes`"
        )
    found: dict[str, int] = {}
    with ExitStack() as held, ExitStack() as gate:
        if count > 1:
            gate.callback(os.close, _wait_for("several", interval))
        while len(found) < count:
            for name in names:
                if len(found) < count and name not in found and (lock := _lock(name)) is not None:
                    found[name] = lock
                    held.callback(os.close, lock)
            if len(found) < count:
                time.sleep(interval)
        gate.close()
        yield [name for name in names if name in found]


def _wait_for(name: str, interval: float) -> int:
    while (lock := _lock(name)) is None:
        time.sleep(interval)
    return lock


def _lock(name: str) -> int | None:
    """A lock as an open file; None if it is held."""
    held = _open(lock_folder() / f"cones-gpu-{re.sub(r'[^A-Za-z0-9-]', '_', name)}.lock")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        return None
    return held


def _open(path: Path) -> int:
    """A file that any user may open; in a shared folder one of another user may be opened, but not with O_CREAT."""
    while True:
        try:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            try:
                held = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                continue  # another process made it in between
            os.fchmod(held, 0o644)  # whatever the umask
            return held
