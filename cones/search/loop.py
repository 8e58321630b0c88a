"""The one loop of searching and fine-tuning: train, validate, keep the best, stop, resume."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from cones.search.checkpoint import Keeper, Progress, resume, save_checkpoint
from cones.search.outcome import SearchResult

if TYPE_CHECKING:
    from accelerate import Accelerator

OnLine = Callable[[dict[str, float]], None]


@runtime_checkable
class Work(Protocol):
    """What is optimised, in units of progress: the epochs of a search, the steps of a fine-tuning.

    `module` holds what trains and all else that a resume needs; a unit has `steps_a_unit` optimiser steps.
    """

    accelerator: "Accelerator"
    module: nn.Module
    optimiser: torch.optim.Optimizer
    units: int
    steps_a_unit: int
    patience: int | None
    checkpoint_seconds: float

    @property
    def validate_every(self) -> int | None:
        """Units between validations; None: there is nothing to validate on, so that nothing is chosen."""
        ...

    def begin(self, progress: Progress) -> None:
        """Go on from what a checkpoint says, or from the start."""
        ...

    def steps(self, unit: int) -> Iterator[int]:
        """Do the steps of a unit that are not done yet; after each but the last, which step comes next."""
        ...

    def note(self, progress: Progress) -> None:
        """Write down what a checkpoint needs beside the module's state."""
        ...

    def line(self, unit: int, validated: bool) -> dict[str, float]:
        """Where it stands after a unit, and how the training went."""
        ...

    def metrics(self) -> dict[str, float]:
        """The validation metrics of what it holds now."""
        ...

    def watch(self, unit: int) -> None:
        """Make what a person wants to see on the way; its time is not counted."""
        ...

    def copy(self) -> dict[str, Tensor]:
        """All that trains, as it is now."""
        ...

    def restore(self, best: dict[str, Tensor]) -> None:
        """Put back what `copy` gave."""
        ...


def optimise(
    work: Work, task: str, checkpoint: Path | None = None, on_line: OnLine = lambda line: None
) -> SearchResult:
    """Train; the task's validation metrics choose the best, the start among them, and `work` holds that when this ends.
    Without validation it holds the last.

    Every random choice comes from a seed and the number of the unit or step, so a resumed run has the same bits. With
    `checkpoint` the state is written there every `checkpoint_seconds`, and a run that finds one goes on from it. Of
    several processes the main one alone writes it and is watched. Raises `SearchError` where no validation gives a
    finite score.
    """
    began, is_main = time.perf_counter(), work.accelerator.is_main_process
    with work.accelerator.main_process_first():
        progress = resume(checkpoint, work.module, work.optimiser)
    work.begin(progress)
    began -= progress.seconds
    every = work.validate_every

    def tell(line: dict[str, float], validated: bool) -> None:
        if validated:
            line = progress.validated(line, work.metrics(), task, work.copy)
        elif every is None:
            progress.curves.append(line)
        on_line(line)

    def save() -> None:
        assert checkpoint is not None, "a run without a checkpoint keeps nothing"
        progress.seconds = time.perf_counter() - began
        work.note(progress)
        save_checkpoint(checkpoint, progress, work.module, work.optimiser)

    def watch(unit: int) -> None:
        if is_main:
            work.watch(unit)

    with Keeper(save if checkpoint is not None and is_main else None, work.checkpoint_seconds) as keep:
        if not progress.curves:
            began += seconds_of(watch, 0)
            tell(work.line(0, every is not None), every is not None)
        for unit in range(progress.epoch, work.units):
            if out_of_patience(progress, work):
                break
            for step in work.steps(unit):
                keep(f"step {step}")
            progress.epoch, progress.losses = unit + 1, []
            began += seconds_of(watch, progress.epoch)
            due = every is not None and (not progress.epoch % every or progress.epoch == work.units)
            tell(work.line(progress.epoch, due), due)
            over = progress.epoch == work.units or out_of_patience(progress, work)
            keep("its end" if over else f"step {progress.epoch * work.steps_a_unit + 1}")

    kept = progress.epoch
    if every is not None:
        progress.refuse_no_score(task)
        work.restore(progress.best)
        kept = progress.best_epoch
    steps = (progress.epoch * work.steps_a_unit, kept * work.steps_a_unit)
    return SearchResult(progress.curves, *steps, time.perf_counter() - began)


def seconds_of(call: Callable[..., object], *given: Any) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    call(*given)
    return time.perf_counter() - began


def out_of_patience(progress: Progress, work: Work) -> bool:
    """Whether the last validation ends a run; its first one after the start never does."""
    every, patience = work.validate_every, work.patience
    if every is None or patience is None or progress.curves[-1].get("epoch") != progress.epoch:
        return False
    return progress.epoch - max(progress.best_epoch, every) >= patience
