"""Progress that a person can watch, and that a log file can hold."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar that the yielded function moves: `advance(by, note)`; without a terminal, a line every ten seconds."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(what, total)
        return
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} {task.fields[note]}", markup=False),
    ]
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(what, total=total, note="")

        def advance(by: int = 1, note: str = "") -> None:
            bar.update(task, advance=by, note=note)

        yield advance


def row_progress(row: str, unit: str, head: str, advance: Callable[..., None]) -> Callable[[dict[str, float]], None]:
    """What moves a bar by the lines of a row's curves, which count `unit` ("epoch" or "step"), and shows the validation
    score `head`; a row whose first line is not that of its start is resumed, and says where it goes on."""
    first = True

    def show(line: dict[str, float]) -> None:
        nonlocal first
        if first and line[unit]:
            done = int(line[unit]) - 1
            print(f"{row}: resuming after {unit} {done}", flush=True)
            advance(done)
        first = False
        score = line.get(f"val_{head}")
        advance(min(int(line[unit]), 1), "" if score is None else f"val {head} {score:.3f}")

    return show


def _lines(what: str, total: int, every: float = 10.0) -> Callable[..., None]:
    done, told = 0, time.monotonic()

    def advance(by: int = 1, note: str = "") -> None:
        nonlocal done, told
        done += by
        if done >= total or time.monotonic() - told >= every:
            told = time.monotonic()
            print(f"{what}: {done}/{total} {note}".rstrip(), file=sys.stderr, flush=True)

    return advance
