"""What every stage's process does: divide the cores, end with its parent, hold its lock, and end with one message."""

import errno
import inspect
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from cones.common.errors import MAY_PASS_CODE, Busy, ConesError
from cones.common.escaping import terminal_lines
from cones.common.redaction import guard_output, redacted
from cones.common.system_errors import in_words

TRACEBACK = "CONES_TRACEBACK"
"""An environment variable that, set, shows where an expected error comes from, too."""

STOPPED_CODE, ENDED_CODE = 128 + signal.SIGINT, 128 + signal.SIGTERM
"""Exit codes of a process that a person stopped with Ctrl-C, and of one that was ended with SIGTERM, as shells have it.
"""

LAUNCHER = "CONES_LAUNCHER_PID"
"""Names to each of a row's processes the one that started them, with which they end."""

STAGE_WAIT = 5.0
"""Seconds that a stage waits for a lock of its own: that of a DVC that was killed ends a moment later."""

MOST_THREADS = 16
"""More gain little here, and cost much where several stages share the cores."""


def run_stage(main: Callable[..., None]) -> None:
    """Run `main` on the names the command line gives, with expected errors as `plain_errors` has them.

    Under DVC the name is that of the stage, such as `search@cells-cones`: in a command of dvc.yaml it would go through
    a shell, which runs what a name holds.
    """
    wanted, given = list(inspect.signature(main).parameters), sys.argv[1:]
    if not given and "@" in os.environ.get("DVC_STAGE", ""):
        given = [os.environ["DVC_STAGE"].rpartition("@")[2]]
    if len(given) != len(wanted):
        sys.exit(" ".join(["usage: python", sys.argv[0], *map(str.upper, wanted)]))
    with plain_errors():
        share_the_cores()
        die_with_parent()
        main(*given)


def share_the_cores() -> None:
    """Set how a process that is about to import torch computes; what the environment says already stands.

    Its threads sleep while they wait for each other: those that spin take the core of whatever else runs, and of the
    very thread that they wait for. OpenMP reads this once, when torch is loaded.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(compute_threads()))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def cores() -> list[int]:
    """The CPU cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def compute_threads() -> int:
    """How many threads a stage computes with, which decides the last bits of its results.

    One a core that this process may use, but not one for each of a core's hyper-threads, and at most `MOST_THREADS`.
    """
    import psutil

    return min(len(cores()), psutil.cpu_count(logical=False) or len(cores()), MOST_THREADS)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Make an expected error one message and exit code 1, or `MAY_PASS_CODE` where trying again may help.

    Expected are `ConesError`, all that the system refuses (`OSError`), and memory that is out; CONES_TRACEBACK=1 shows
    where one comes from. Being stopped is one line as well, that of the KeyboardInterrupt if it has one: by Ctrl-C with
    exit code `STOPPED_CODE`, by SIGTERM, which does what Ctrl-C does, with `ENDED_CODE`. An output that is closed, as
    `head` does, ends it without a word, with 1. For the main thread.
    """
    guard_output()
    asked: list[int] = []
    with _noted_in(asked):
        try:
            try:
                yield
            finally:
                _flush()  # what the output cannot take is told here, and not by Python at its end
        except BaseException as error:
            closed = _is_output_closed(error)
            _let_go_of_output()
            stopped = isinstance(error, KeyboardInterrupt)
            plain = None if stopped or _is_cut_short(error, asked) else in_words(error)
            if plain is not None:
                _show(plain, quietly=closed)
                sys.exit(MAY_PASS_CODE if plain.may_pass else 1)
            # An import that Ctrl-C cuts short may fail in any way: torch takes the numpy that it cuts off for missing.
            if not stopped and not asked:
                raise
            print(error.args[0] if stopped and error.args else "stopped; run it again to go on", file=sys.stderr)
            sys.exit(128 + (asked or [signal.SIGINT])[0])


def _is_cut_short(error: BaseException, asked: list[int]) -> bool:
    """Whether an error is but what being stopped makes of a call of the system; what could not be kept is none."""
    return bool(asked) and isinstance(error, OSError) and error.errno in (None, errno.EINTR, errno.EPIPE)


def _let_go_of_output() -> None:
    """Drop what is left for an output that cannot take it, which Python would complain of at its end."""
    try:
        _flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_output_closed(error: BaseException) -> bool:
    """Whether whoever read this process's output, through a pipe, has ended."""
    if not isinstance(error, BrokenPipeError) or error.filename or not hasattr(select, "poll"):
        return False
    with suppress(OSError, AttributeError):  # an output that is no file
        output = select.poll()
        output.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in output.poll(0))
    return False


def _flush() -> None:
    if sys.stdout is not None:  # as it is in a process that was started without one
        sys.stdout.flush()


def _show(error: ConesError, quietly: bool) -> None:
    if os.environ.get(TRACEBACK):
        print(redacted(traceback.format_exc()), end="", file=sys.stderr)
    if not quietly:
        print(f"error: {terminal_lines(error)}", file=sys.stderr)


@contextmanager
def _noted_in(asked: list[int]) -> Iterator[None]:
    """Note which signals ask this process to stop; SIGTERM goes to whoever handles Ctrl-C at that moment."""

    def stop(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        handles = signal.getsignal(signal.SIGINT)
        if number == signal.SIGTERM and callable(handles):
            handles(signal.SIGINT, frame)
        else:
            raise KeyboardInterrupt

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, stop)}
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as a shell has it for what is in its background
        before[signal.SIGINT] = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def die_with_parent(interval: float = 0.5) -> None:
    """End this process when the DVC that started it is gone: a killed `dvc` leaves its children running otherwise.

    The shell that DVC may put between is not the one to watch, but the flow that started that DVC is, if there is one.
    One of several processes of a row watches what started these. Does nothing outside DVC else.
    """
    if not {"DVC_STAGE", LAUNCHER} & set(os.environ):
        return
    import psutil

    def of(name: str) -> psutil.Process | None:
        number = int(os.environ[name])
        return psutil.Process(number) if psutil.pid_exists(number) else None

    watched: list[psutil.Process | None] = [psutil.Process().parent()]
    if LAUNCHER in os.environ:
        watched = [of(LAUNCHER)]
    elif watched[0] is not None and watched[0].name() in {"sh", "bash", "dash", "zsh", "fish"}:
        watched = [watched[0].parent()]
    if "CONES_FLOW_PID" in os.environ:
        watched.append(of("CONES_FLOW_PID"))

    def watch() -> None:
        try:
            while all(p is not None and p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in watched):
                time.sleep(interval)
        except psutil.Error:
            pass  # it went while it was looked at
        os._exit(143)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def lock(path: Path, what: str, wait: float = 0) -> Iterator[None]:
    """Hold a file lock; `Busy` if another process holds it, after `wait` seconds. It is freed when its process ends."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=wait):
            yield
    except Timeout:
        raise Busy(f"{what} is being worked on by another process ({path} is held); wait for it or end it") from None
