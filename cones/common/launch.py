"""One program in several processes, which begin and end together.

Not by `accelerate launch` or `torchrun`: where those let processes meet, a port is open to every network of the machine
and asks for no password; what they start outlives them when they are killed; and Ctrl-C goes to each process at once,
in whatever step. Here processes meet by a file of their own and talk over loopback, and accelerate finds in each of
them the variables that its own launcher sets.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from types import FrameType
from typing import IO

from cones.common.process import LAUNCHER, compute_threads

MEET = "CONES_MEET"
"""Names the file by which the processes find each other."""

LOOK_SECONDS = 0.05


def ran_in_processes(count: int) -> bool:
    """Run this program in `count` processes, and return True when all are done; return False in each of them, and where
    it is one.

    The first process has this one's output and the signals that end this one; the output of the others is dropped. Any
    that fails ends all: this process then exits as that one did, and shows what it said.
    """
    if count == 1 or LAUNCHER in os.environ:
        return False
    with TemporaryDirectory(prefix="cones-") as folder, ExitStack() as files:
        errors = [files.enter_context(TemporaryFile()) for _ in range(1, count)]
        code = _run(count, Path(folder), [None, *errors])
    if code:
        sys.exit(code)
    return True


def _run(count: int, folder: Path, errors: Sequence[IO[bytes] | None]) -> int:
    """The exit code of this program, with a file for what each process says of errors; None: as this one's."""
    processes: list[subprocess.Popen] = []
    try:
        with _passed_on(processes):
            for number, told in enumerate(errors):
                processes.append(
                    subprocess.Popen(
                        [sys.executable, *sys.argv], env={**os.environ, **_environment(number, count, folder)},
                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL if number else None, stderr=told,
                        start_new_session=True,
                    )
                )  # fmt: skip
            first = _first_failed(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return 0 if first is None else _exit_code(first, processes[first].returncode, count, errors[first])


def _environment(number: int, count: int, folder: Path) -> dict[str, str]:
    """What one of the processes is told: the variables of torch's and accelerate's launchers, and ours."""
    ranks = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    threads = int(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0] or compute_threads())
    loopback = _loopback()
    ours = {MEET: str(folder / "meet"), LAUNCHER: os.getpid(), "OMP_NUM_THREADS": max(1, threads // count)}
    talk = {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    return {name: str(value) for name, value in {**ranks, **ours, **talk}.items()}


def _loopback() -> str:
    import psutil

    every = psutil.net_if_addrs().items()
    return next((name for name, addresses in every if any(a.address == "127.0.0.1" for a in addresses)), "lo")


def _first_failed(processes: Sequence[subprocess.Popen]) -> int | None:
    """Wait until one has failed, and return its number; None when all are done."""
    while True:
        codes = [process.poll() for process in processes]
        failed = [number for number, code in enumerate(codes) if code]
        if failed:
            return failed[0]
        if None not in codes:
            return None
        time.sleep(LOOK_SECONDS)


def _exit_code(number: int, code: int, count: int, told: IO[bytes] | None) -> int:
    """The exit code of the process that failed first, its last words shown."""
    if told is not None:
        told.seek(0)
        print(told.read().decode(errors="replace"), end="", file=sys.stderr)
    if code > 0:
        return code
    print(
        f"error: process {number + 1} of {count} was ended by {signal.Signals(-code).name}, and so the others were "
        "ended, too; run it again to go on from the checkpoint",
        file=sys.stderr,
    )
    return 128 - code


@contextmanager
def _passed_on(processes: Sequence[subprocess.Popen]) -> Iterator[None]:
    """Give Ctrl-C and SIGTERM to the first process, which keeps its state and ends; a second one ends all at once."""
    asked: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for process in processes if len(asked) > 1 else processes[:1]:
            process.send_signal(number if len(asked) == 1 else signal.SIGKILL)

    numbers = [signal.SIGTERM] + [signal.SIGINT] * (signal.getsignal(signal.SIGINT) is not signal.SIG_IGN)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
