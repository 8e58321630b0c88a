"""Fine-tuning: weights of the base model, and perhaps a prompt, in steps on pictures drawn at random."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cones.common.errors import SearchError
from cones.finetuning.settings import Finetune
from cones.interfaces.pictures import Features, Pictures
from cones.interfaces.processes import share_of, summed
from cones.interfaces.randomness import generator_for
from cones.search.checkpoint import Progress
from cones.search.loop import OnLine, optimise
from cones.search.outcome import SearchResult
from cones.search.schedule import LARGEST_GRADIENT, rate_share
from cones.search.trained import Trained

if TYPE_CHECKING:
    from accelerate import Accelerator

Metrics = dict[str, float]


def finetune(
    trained: Trained,
    loss_of: Callable[[Features, torch.Generator], Tensor],
    metrics_of: Callable[[], Metrics],
    train: Pictures,
    settings: Finetune,
    seed: int,
    accelerator: "Accelerator",
    task: str,
    checkpoint: Path | None = None,
    on_step: OnLine = lambda line: None,
    watch: Callable[[int], None] = lambda step: None,
) -> SearchResult:
    """Train what trains; the best by `metrics_of`, the start among them, is what it holds when this ends; see
    `cones.search.loop.optimise`. `watch` is called at the start and after each step, and its time is not counted."""
    work = Steps(trained, loss_of, metrics_of, train, settings, seed, accelerator, watch)
    return optimise(work, task, checkpoint, on_step)


class Steps:
    """A fine-tuning as `Work`: see there."""

    steps_a_unit: int = 1
    patience: int | None = None

    def __init__(
        self,
        trained: Trained,
        loss_of: Callable[[Features, torch.Generator], Tensor],
        metrics_of: Callable[[], Metrics],
        train: Pictures,
        settings: Finetune,
        seed: int,
        accelerator: "Accelerator",
        watch: Callable[[int], None],
    ) -> None:
        self.module, self.loss_of, self.metrics, self.train = trained, loss_of, metrics_of, train
        self.settings, self.seed, self.accelerator, self.watch = settings, seed, accelerator, watch
        self.share = share_of(accelerator)
        count = self.share.processes
        if count > len(train):
            raise SearchError(
                f"`processes: {count}` shares out the pictures of a step, and there are {len(train)} to train on; set "
                f"it to at most {len(train)}"
            )
        self.batch_size = min(settings.batch_size * count, len(train)) // count * count
        """Of all processes together, each as many as the others: then a mean is that of their means."""
        self.optimiser = optimiser_for(trained, settings)
        self.units, self.validate_every = settings.steps, settings.validate_every
        self.checkpoint_seconds = settings.checkpoint_seconds
        self.copy, self.restore = trained.copy, trained.restore

    def begin(self, progress: Progress) -> None:
        if self.accelerator.scaler is not None:
            self.optimiser = self.accelerator.prepare(self.optimiser)

    def note(self, progress: Progress) -> None:
        """All of it is in the module's state."""

    def steps(self, unit: int) -> Iterator[int]:
        """One step on pictures drawn at random."""
        settings, generator = self.settings, generator_for(self.seed, unit)
        share = rate_share(unit, settings.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = group["initial_lr"] * share
        features = self.train.sample(self.batch_size, generator, self.share).to(self.accelerator.device)
        with self.accelerator.autocast():
            loss = self.loss_of(features, generator) / self.share.processes
        if loss.requires_grad:  # pictures without objects teach a mask head nothing
            self.accelerator.backward(loss)
        trained = list(self.module.parameters())
        if not math.isfinite(value := summed(self.accelerator, trained, loss).item()):
            raise SearchError(self._not_finite(value, unit, share))
        if any(p.grad is not None for p in trained):
            self.accelerator.clip_grad_norm_(trained, LARGEST_GRADIENT)
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
        self.module.losses[unit % settings.validate_every] = value
        yield from ()

    def _not_finite(self, value: float, unit: int, share: float) -> str:
        lr, prompt_lr = self.settings.lr * share, prompt_rate(self.settings) * share
        if self.module.embeds is None:
            return f"the loss is {value} at step {unit + 1} with learning rate {lr:.3g}; lower `lr`"
        rates = f"{lr:.3g} for weights and {prompt_lr:.3g} for embeddings"
        return f"the loss is {value} at step {unit + 1} with learning rates {rates}; lower `lr` or `prompt_lr`"

    def line(self, unit: int, validated: bool) -> dict[str, float]:
        line: dict[str, float] = {"step": unit}
        if not (unit and validated):
            return line
        size, last = len(self.train), (unit - 1) % self.settings.validate_every
        epochs = unit * self.batch_size / size
        return line | {"epoch": round(epochs, 2), "train_loss": self.module.losses[: last + 1].mean().item()}


def optimiser_for(trained: Trained, settings: Finetune) -> torch.optim.Optimizer:
    """AdamW of the weights, and of the embeddings at their own rate and without decay."""
    groups: list[dict[str, Any]] = [
        {"params": list(trained.weights), "initial_lr": settings.lr, "weight_decay": settings.weight_decay}
    ]
    if trained.embeds is not None:
        groups.append({"params": [trained.embeds], "initial_lr": prompt_rate(settings), "weight_decay": 0.0})
    return torch.optim.AdamW(groups, settings.lr, fused=True)


def prompt_rate(settings: Finetune) -> float:
    """The rate of the embeddings, where a kind trains them."""
    return float(getattr(settings, "prompt_lr", 0.0))
