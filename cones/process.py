"""What every stage's process does: end with its parent, hold its lock, and turn expected errors into one message."""

import inspect
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cones.errors import ConesError


def run_stage(main: Callable[..., None]) -> None:
    """Run `main` on the names the command line gives; an expected error is one message and exit code 1."""
    wanted = list(inspect.signature(main).parameters)
    if len(sys.argv) - 1 != len(wanted):
        sys.exit(" ".join(["usage: python", sys.argv[0], *map(str.upper, wanted)]))
    die_with_parent()
    try:
        main(*sys.argv[1:])
    except ConesError as error:
        sys.exit(f"error: {error}")


def die_with_parent(interval: float = 0.5) -> None:
    """End this process when the DVC that started it is gone: a killed `dvc` leaves its children running otherwise.

    The shell that DVC may put between is not the one to watch. Does nothing outside DVC.
    """
    if "DVC_STAGE" not in os.environ:
        return
    import psutil

    parent = psutil.Process().parent()
    if parent is not None and parent.name() in {"sh", "bash", "dash", "zsh", "fish"}:
        parent = parent.parent()
    if parent is None:
        return

    def watch() -> None:
        try:
            while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
                time.sleep(interval)
        except psutil.Error:
            pass  # it went while it was looked at
        os._exit(143)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def lock(path: Path, what: str) -> Iterator[None]:
    """Hold a file lock; `ConesError` at once if another process holds it. The system frees it when its process ends."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout:
        raise ConesError(
            f"{what} is being worked on by another process ({path} is held); wait for it or end it"
        ) from None
