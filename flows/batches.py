"""Several short stages in one DVC process, which spares each of them the start of a DVC and its look at the graph."""

import re
from collections.abc import Callable, Mapping, Sequence
from math import ceil

from flows.processes import CommandFailed, Program, Programs

MOST = 8
"""Stages in one process."""

BATCH_SECONDS, AWAY_SECONDS = 10.0, 60.0
"""Stages are handed over together while they take no longer, as whoever is free cannot take one of them back: here, and
to a worker elsewhere, where each journey takes some ten seconds."""

COMES = r"(Running stage |Stage )'{}'(:| didn't change, skipping| is cached - .*)"
"""DVC's word that it has come to a stage, and so is done with the one before."""

FAILED = re.compile(r"failed to reproduce '([^']+)'")


def batch_size(ready: int, parallel: int, seconds: Sequence[float], away: bool = False) -> int:
    """How many of the `ready` stages of a kind one process gets, where `parallel` may run at once.

    `seconds`: what each of that kind took before, in this flow. Before that is known, a stage has a process of its own.
    """
    if not seconds:
        return 1
    most = AWAY_SECONDS if away else BATCH_SECONDS
    short = int(most * len(seconds) / max(sum(seconds), 1e-3))
    return max(1, min(ceil(ready / parallel), short, MOST))


class Batch:
    """Stages that one DVC process brings up to date in turn, while a task of its own follows each.

    DVC ends at the first failure, and whoever runs the next stage, or the failed one again, starts it anew for the
    rest: a failure stays with its stage.
    """

    def __init__(self, names: Sequence[str], on: Sequence[int], programs: Programs) -> None:
        self.on = on
        """The CPU cores that they run on."""
        self.left = list(names)
        """Those that no task follows yet."""
        self._names, self._programs = names, programs
        self._program: Program | None = None
        self._line = ""  # in which DVC said that it has come to the next stage

    def run(self, name: str, environment: Mapping[str, str], log: Callable[[str], None]) -> None:
        """Bring a stage up to date, the first or the one after that of the call before, or that once more."""
        names = self._names[self._names.index(name) :]
        if self._program is None:
            command = ["dvc", "--wait-for-lock", "repro", "--single-item", *names]
            self._program = self._programs.start(name, command, environment, self.on)
        else:
            log(self._line)
        comes = re.compile(COMES.format(re.escape(names[1]))) if names[1:] else None
        try:
            self._line = self._program.follow(name, log, comes)
        except CommandFailed as error:
            self._program, failed = None, FAILED.search(str(error))
            if not failed or failed[1] not in names[1:]:  # which fail before DVC says that it has come to them
                raise
        else:
            if not self._line:
                self._program = None
