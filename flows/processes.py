"""Running programs from a flow: streamed output, divided CPU cores, and none left behind."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cones.cli.servers import SERVERS_OWN
from cones.common.errors import MAY_PASS_CODE, ConesError
from cones.common.process import STOPPED_CODE
from cones.common.redaction import redacted

FLOW_PID = "CONES_FLOW_PID"
"""Names the flow's process to the stages it starts, which end with it."""

CRASHES = {
    signal.SIGBUS: "it ended by SIGBUS: a file that it read or wrote through memory was cut off, or its disk is full",
    signal.SIGSEGV: "it crashed: SIGSEGV",
    signal.SIGABRT: "it crashed: SIGABRT",
    signal.SIGILL: "it crashed: SIGILL, as of a program built for another processor",
    signal.SIGFPE: "it crashed: SIGFPE",
}
"""Signals that a process brings upon itself, in words."""


class CommandFailed(ConesError):
    """A program ended badly. `may_pass` tells whether trying again makes sense."""

    def __init__(self, what: str, lines: list[str], returncode: int, ended: bool = False) -> None:
        told = [line for line in lines if line.lower().startswith("error:")] or lines[-1:]
        codes = _exit_codes(lines, returncode)
        crashes = [f"({why})" for number, why in CRASHES.items() if codes & {-number, 128 + number}]
        super().__init__(f"{what} failed: {' '.join([*told, *crashes]) or f'exit code {returncode}'}")
        self.may_pass = not ended and not crashes and _may_pass("\n".join(lines), codes)


def _exit_codes(lines: list[str], returncode: int) -> set[int]:
    """How a program ended, and how a stage did that it ran, as DVC tells it."""
    return {returncode, *map(int, re.findall(r"exited with (-?\d+)", "\n".join(lines)))}


def _may_pass(output: str, codes: set[int]) -> bool:
    """Killed by a signal, a stage's own word that it may pass (its exit code), or DVC's lock.

    A signal n is told as -n, or as 128 + n by the shell that DVC runs a stage in or by the stage itself. Ctrl-C is a
    person's word, and no reason to try again; neither is a crash (`CRASHES`), which comes again.
    """
    if codes & {STOPPED_CODE, -signal.SIGINT}:
        return False
    killed = any(code < 0 or 128 < code <= 128 + signal.NSIG for code in codes)
    return killed or MAY_PASS_CODE in codes or "it is being blocked by" in output


class Program:
    """A program under way."""

    def __init__(self, process: subprocess.Popen, ended: Callable[[], bool]) -> None:
        self._process, self._ended = process, ended

    def follow(self, what: str, log: Callable[[str], None], until: re.Pattern[str] | None = None) -> str:
        """Log its lines as they come, to its end, and return ""; raise `CommandFailed` if that is a bad one.

        The first line that is `until` is returned and not logged; the next call goes on after it. `ended`, given to
        the class, tells whether it is made to end.
        """
        last: deque[str] = deque(maxlen=40)
        for line in self._process.stdout or ():
            if line.strip():
                shown = redacted(line).rstrip()
                if until and until.fullmatch(shown):
                    return shown
                last.append(shown.strip())
                log(shown)
        if self._process.wait():
            raise CommandFailed(what, list(last), self._process.returncode, self._ended())
        return ""


class Programs:
    """The programs that one flow has started. When a block with it ends, however it does, they end and no other one
    starts: a cancelled flow is over."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen] = set()
        self._ending = threading.Event()

    def __enter__(self) -> "Programs":
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.set()
        for process in list(self._running):
            process.terminate()

    def ending(self) -> bool:
        """Whether the flow is over."""
        return self._ending.is_set()

    def run(
        self,
        what: str,
        command: list[str],
        environment: Mapping[str, str],
        log: Callable[[str], None],
        cores: Sequence[int] = (),
    ) -> None:
        """Run a program as `start` has it and log its lines as they come; raise `CommandFailed` if it fails."""
        self.start(what, command, environment, cores).follow(what, log)

    def start(
        self, what: str, command: list[str], environment: Mapping[str, str], cores: Sequence[int] = ()
    ) -> Program:
        """Start a program of this Python's environment.

        Of the servers' passwords it is told those of MLflow's client only. With `cores` it runs on those CPU cores
        only, where the system can do that. A stage that it starts ends with this process
        (`cones.common.process.die_with_parent`).
        """
        if self._ending.is_set():
            raise CommandFailed(what, ["error: the flow is ending"], 1, ended=True)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        ours = {name: value for name, value in os.environ.items() if name not in SERVERS_OWN}
        full = {**ours, "PATH": path, FLOW_PID: str(os.getpid()), **environment}
        process = subprocess.Popen(
            command, env=full, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace",
        )  # fmt: skip
        self._running.difference_update([p for p in list(self._running) if p.poll() is not None])
        self._running.add(process)
        if self._ending.is_set():  # since it was asked
            process.terminate()
        if cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, cores)
        return Program(process, self._ending.is_set)
