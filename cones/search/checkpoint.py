"""A search's state on disk: safetensors and JSON of our own, so that reading it never unpickles."""

import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from cones.common.errors import SearchError
from cones.common.escaping import one_line
from cones.common.files import content_hash, file_hash, folder_hash, fresh_file
from cones.common.layout import CHECKPOINTS
from cones.common.tensors import read_safetensors
from cones.concept.file import tensors_hash
from cones.tasks.ranking import headline, rank

KEY, HASH = "cones_checkpoint", "sha256"


@dataclass
class Progress:
    """How far a search is, the best it found, and what it cost. `losses` are those of the steps that are done of the
    epoch after `epoch`."""

    epoch: int = 0
    losses: list[float] = field(default_factory=list)
    curves: list[dict[str, float]] = field(default_factory=list)
    best_metrics: dict[str, float] | None = None
    best_epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    text_encoder_calls: int = 0

    def validated(
        self,
        line: dict[str, float],
        metrics: dict[str, float],
        task: str,
        state: Callable[[], dict[str, Tensor]],
    ) -> dict[str, float]:
        """Write a validation down, and keep `state()` if it is the best so far; returns its line of the curves."""
        line = line | {f"val_{name}": value for name, value in metrics.items()}
        self.curves.append(line)
        if self.best_metrics is None or rank(task, metrics) > rank(task, self.best_metrics):
            self.best_metrics, self.best_epoch, self.best = metrics, self.epoch, state()
        return line

    def refuse_no_score(self, task: str) -> None:
        """`SearchError` where no validation gave a finite score, so that none is better than another."""
        if rank(task, self.best_metrics or {})[0] == -math.inf:
            told = {name: value for name, value in (self.best_metrics or {}).items() if not math.isfinite(value)}
            raise SearchError(f"no validation gave a finite {headline(task)} (the first: {told}); lower `lr`")


class Told(BaseModel, extra="forbid"):
    """`Progress` without its tensors, as a checkpoint tells it."""

    epoch: int
    losses: list[float]
    curves: list[dict[str, float]]
    best_metrics: dict[str, float] | None
    best_epoch: int
    seconds: float
    text_encoder_calls: int


class Keeper:
    """Keeps a search's state by the clock, and where a person stops it.

    As a context it holds the first Ctrl-C back until the step under way is done; a second one ends at once. Call it
    after each step with where the search goes on; `save` None keeps nothing and holds nothing back.
    """

    def __init__(self, save: Callable[[], None] | None, seconds: float) -> None:
        self._save, self._seconds = save, seconds
        self._saved_at, self._stop_asked = time.perf_counter(), False

    def __enter__(self) -> "Keeper":
        self._before = signal.getsignal(signal.SIGINT)
        here = threading.current_thread() is threading.main_thread() and self._before is not signal.SIG_IGN
        self._holds_back = self._save is not None and here
        if self._holds_back:
            signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self._holds_back:
            signal.signal(signal.SIGINT, self._before)
        if kind is None and self._stop_asked:
            raise KeyboardInterrupt

    def _ask(self, *_: object) -> None:
        self._stop_asked = True
        signal.signal(signal.SIGINT, self._before)

    def __call__(self, where: str) -> None:
        """Save if it is time to. Raises KeyboardInterrupt, the state being saved, where a stop was asked for."""
        if self._save is None:
            return
        if self._stop_asked or time.perf_counter() - self._saved_at >= self._seconds:
            self._save()
            self._saved_at = time.perf_counter()
        if self._stop_asked:
            raise KeyboardInterrupt(f"stopped; goes on at {where}")


def checkpoint_path(*facts: Any) -> Path:
    """Where the state of a search goes, by all that decides it: its settings, what it works on, and this code."""
    package = Path(__file__).parent.parent
    code = folder_hash(package, package.rglob("*.py"))
    return CHECKPOINTS / content_hash([*facts, code])[:16] / "state.safetensors"


def row_checkpoint(settings: BaseModel, about: dict[str, Any], start: Path | None = None) -> Path:
    """`checkpoint_path` of a row, by the `about` of its encoded concept and the Concept file that it starts from."""
    return checkpoint_path(settings.model_dump(), about, *([] if start is None else [file_hash(start)]))


def save_checkpoint(path: Path, progress: Progress, method: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Write everything a search needs to go on, whole or not at all."""
    from safetensors.torch import save

    tensors = {f"method.{n}": t for n, t in method.state_dict().items()}
    tensors |= {f"best.{n}": t for n, t in progress.best.items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{n}": t for n, t in state.items() if t is not None}
    copies = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}
    about = json.dumps({k: v for k, v in asdict(progress).items() if k != "best"})
    with fresh_file(path) as temporary:
        # As bytes, so that a full disk is Python's own error.
        temporary.write_bytes(save(copies, metadata={KEY: about, HASH: content_hash([about, tensors_hash(copies)])}))


def load_checkpoint(path: Path, method: nn.Module, optimiser: torch.optim.Optimizer) -> Progress:
    """Put a checkpoint's state into a method and its optimiser; returns how far it was.

    `SearchError` for one that is not what was written, before anything is changed.
    """
    header, tensors = read_safetensors(path, SearchError, "it is no checkpoint")
    about = header.get(KEY, "")
    if header.get(HASH) != content_hash([about, tensors_hash(tensors)]):
        raise SearchError(f"the checkpoint {path} is damaged: it is not what was written")
    try:
        groups: dict[str, dict[str, Tensor]] = {"method": {}, "best": {}, "optimiser": {}}
        for name, tensor in tensors.items():
            group, rest = name.split(".", 1)
            groups[group][rest] = tensor
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in groups["optimiser"].items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        progress = json.loads(about)
        Told.model_validate(progress, strict=True)
    except (ValueError, LookupError, RecursionError) as error:
        raise SearchError(f"the checkpoint {path} holds something else ({one_line(error, 160)})") from None
    _refuse_other_shapes(path, groups["method"], state, method, optimiser)
    method.load_state_dict(groups["method"])
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return Progress(**progress, best=groups["best"])


def _refuse_other_shapes(
    path: Path,
    weights: dict[str, Tensor],
    state: dict[int, dict[str, Tensor]],
    method: nn.Module,
    optimiser: torch.optim.Optimizer,
) -> None:
    """`SearchError` where a state is of another method than this one, or of another optimiser."""
    theirs, ours = ({n: tuple(t.shape) for n, t in of.items()} for of in (weights, method.state_dict()))
    for name in sorted({*theirs, *ours}):
        if theirs.get(name) != ours.get(name):
            what = f"`{name}` is {theirs.get(name, 'not in it')}, and must be {ours.get(name, 'not in it')}"
            raise SearchError(f"the checkpoint {path} is of another method: {what}")
    trained = [p for group in optimiser.param_groups for p in group["params"]]
    for index, kept in state.items():
        shapes = {(), tuple(trained[index].shape)} if 0 <= index < len(trained) else set()
        if not all(tuple(t.shape) in shapes for t in kept.values()):
            raise SearchError(
                f"the checkpoint {path} is of another optimiser: the state of tensor {index} does not fit"
            )


def resume(path: Path | None, method: nn.Module, optimiser: torch.optim.Optimizer) -> Progress:
    """Go on from a checkpoint if there is one; a damaged one is put aside, and said so, and the search begins anew."""
    if path is None or not path.exists():
        return Progress()
    try:
        return load_checkpoint(path, method, optimiser)
    except SearchError as error:
        aside = path.with_name(f"damaged-{path.name}")
        path.replace(aside)
        print(f"{error}; it is put aside as {aside}, and the search begins anew", file=sys.stderr, flush=True)
        return Progress()
