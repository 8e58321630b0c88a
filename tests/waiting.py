"""What tests wait for: that something has happened, and a port that nobody has."""

import contextlib
import socket
import sqlite3
import time
from collections.abc import Callable
from typing import Any

import psutil


def wait_for(what: Callable[[], Any], seconds: float = 90) -> Any:
    """What `what()` returns as soon as it is something; a process gone and a locked database are nothing yet."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(psutil.Error, sqlite3.Error):
            if found := what():
                return found
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} seconds in vain")


def free_port() -> int:
    """Of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
