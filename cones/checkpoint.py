"""A search's state on disk: safetensors and JSON of our own, so that reading it never unpickles."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from cones.files import content_hash, file_hash, folder_hash, fresh_file
from cones.layout import CHECKPOINTS
from cones.ranking import rank

KEY = "cones_checkpoint"


@dataclass
class Progress:
    """How far a search is, the best it found, and what it cost."""

    epoch: int = 0
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


def checkpoint_path(*facts: Any) -> Path:
    """Where the state of a search goes, by all that decides it: its settings, what it works on, and this code."""
    package = Path(__file__).parent
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
    about = {k: v for k, v in asdict(progress).items() if k != "best"}
    with fresh_file(path) as temporary:
        copies = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}
        # As bytes, so that a full disk is Python's own error.
        temporary.write_bytes(save(copies, metadata={KEY: json.dumps(about)}))


def load_checkpoint(path: Path, method: nn.Module, optimiser: torch.optim.Optimizer) -> Progress:
    """Put a checkpoint's state into a method and its optimiser; returns how far it was."""
    from safetensors import safe_open

    groups: dict[str, dict[str, Tensor]] = {"method": {}, "best": {}, "optimiser": {}}
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()[KEY])
        for name in file.keys():
            group, rest = name.split(".", 1)
            groups[group][rest] = file.get_tensor(name)
    method.load_state_dict(groups["method"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in groups["optimiser"].items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return Progress(**about, best=groups["best"])
