"""The one search loop: optimise a method's parameters on cached features, validate, keep the best, stop, resume."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cones.checkpoint import Progress, load_checkpoint, save_checkpoint
from cones.config import Searched
from cones.errors import SearchError
from cones.features import FeatureStore
from cones.randomness import generator_for
from cones.tasks import TASKS, Task
from cones.types import Backbone, Features, Predictions, TextEmbeds

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class SearchResult:
    """What a search did. The method holds the best parameters when it ends.

    `curves` has a line a validation; `steps_to_best` counts optimiser steps up to the best validation.
    """

    curves: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    steps_to_best: int = 0
    seconds: float = 0.0


def text_of(
    method: nn.Module,
    backbone: Backbone,
    names: Sequence[str],
    features: Features | None = None,
    generator: torch.Generator | None = None,
) -> TextEmbeds:
    """The text side that a method's prompts make; the text encoder runs only if they enter before it."""
    prompts = method(names, features, generator)
    if prompts.text_embeds is not None:
        return prompts.text_embeds
    return backbone.embed_text(names, prompts.text_tokens)


@torch.no_grad()
def predict_all(
    backbone: Backbone, batches: Iterable[Features], text: Callable[[Features], TextEmbeds], task: Task, device: Any
) -> list[Predictions]:
    """What is predicted for batches of pictures, as the task keeps it; `text` is that of a batch."""
    placed = (batch.to(device) for batch in batches)
    return [task.keep(backbone.predict(batch, text(batch))) for batch in placed]


def search(
    method: nn.Module,
    backbone: Backbone,
    names: Sequence[str],
    train: FeatureStore,
    val: FeatureStore,
    settings: Searched,
    seed: int,
    accelerator: "Accelerator",
    checkpoint: Path | None = None,
    on_epoch: Callable[[dict[str, float]], None] = lambda line: None,
    task: str = "classification",
    watch: Callable[[int], None] = lambda epoch: None,
) -> SearchResult:
    """Search a method's parameters; the task's metrics on `val` choose the best. `watch` is called after each epoch.

    Every random choice comes from (seed, epoch), so a resumed search has the same bits. With `checkpoint` the state is
    written there at most every `checkpoint_seconds`, and a search that finds one goes on from it. Raises
    `SearchError` naming the step and the rate when the loss is not finite.
    """
    began = time.perf_counter()
    method.to(accelerator.device)
    optimiser = optimiser_for(method, settings)
    progress = Progress()
    if checkpoint is not None and checkpoint.exists():
        progress = load_checkpoint(checkpoint, method, optimiser)
        backbone.text_encoder_calls = progress.text_encoder_calls
    method = accelerator.prepare(method)
    if accelerator.scaler is not None:  # otherwise the wrapper adds nothing, and costs as much as a step on CLIP
        optimiser = accelerator.prepare(optimiser)
    bare: nn.Module = accelerator.unwrap_model(method)

    def copy() -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in bare.state_dict().items()}

    saved_at, spent = began, progress.seconds
    steps_an_epoch = math.ceil(len(train) / settings.batch_size)

    for epoch in range(progress.epoch, settings.epochs):
        losses = train_epoch(method, backbone, names, train, settings, optimiser, accelerator, seed, epoch)
        line = {"epoch": epoch + 1, "step": (epoch + 1) * steps_an_epoch, "train_loss": sum(losses) / len(losses)}
        progress.epoch = epoch + 1
        watch(progress.epoch)
        if progress.epoch % settings.validate_every and progress.epoch < settings.epochs:
            on_epoch(line)
            continue
        batches, text = val.batches(TASKS[task].batch), partial(text_of, method, backbone, names)
        found = predict_all(backbone, batches, text, TASKS[task], accelerator.device)
        metrics = TASKS[task].quick(found, val, names)
        on_epoch(progress.validated(line, metrics, task, copy))
        progress.seconds = spent + time.perf_counter() - began
        progress.text_encoder_calls = backbone.text_encoder_calls
        if settings.patience is not None and progress.epoch - progress.best_epoch >= settings.patience:
            break
        if checkpoint is not None and time.perf_counter() - saved_at >= settings.checkpoint_seconds:
            save_checkpoint(checkpoint, progress, bare, optimiser)
            saved_at = time.perf_counter()

    bare.load_state_dict(progress.best)
    return SearchResult(
        progress.curves,
        progress.epoch * steps_an_epoch,
        progress.best_epoch * steps_an_epoch,
        spent + time.perf_counter() - began,
    )


def train_epoch(
    method: nn.Module,
    backbone: Backbone,
    names: Sequence[str],
    train: FeatureStore,
    settings: Searched,
    optimiser: Any,
    accelerator: "Accelerator",
    seed: int,
    epoch: int,
) -> list[float]:
    """Each training picture once, in a random view; the losses of the steps."""
    generator = generator_for(seed, epoch)
    order = torch.randperm(len(train), generator=generator)
    views = torch.randint(train.views, (len(train),), generator=generator)
    batches = list(zip(order.split(settings.batch_size), views.split(settings.batch_size)))
    losses: list[Tensor] = []
    trained = list(method.parameters())
    for i, (rows, seen) in enumerate(batches):
        rate = learning_rate(settings, epoch * len(batches) + i, len(batches))
        for group in optimiser.param_groups:
            group["lr"] = rate
        size = math.ceil(len(rows) / settings.accumulate)
        of_parts = []
        for part, views_of in zip(rows.split(size), seen.split(size)):
            features = train.batch(part, views_of).to(accelerator.device)
            with accelerator.autocast():
                loss = backbone.loss(features, text_of(method, backbone, names, features, generator), generator)
                loss = loss * (len(part) / len(rows))
            accelerator.backward(loss)
            of_parts.append(loss.detach())
        optimiser.step()
        for parameter in trained:
            parameter.grad = None
        losses.append(torch.stack(of_parts).sum())
    values = torch.stack(losses).tolist()
    for i, value in enumerate(values):
        if not math.isfinite(value):
            step = epoch * len(batches) + i
            rate = learning_rate(settings, step, len(batches))
            raise SearchError(f"the loss is {value} at step {step + 1} with learning rate {rate:.3g}; lower `lr`")
    return values


def learning_rate(settings: Searched, step: int, steps_an_epoch: int) -> float:
    """The rate at a step: constant while warming up, then a cosine to zero over all epochs."""
    warm = settings.warmup_epochs * steps_an_epoch
    total = settings.epochs * steps_an_epoch
    if step < warm and total > warm:
        return min(settings.warmup_lr, settings.lr)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * step / total))


def optimiser_for(method: nn.Module, settings: Searched) -> torch.optim.Optimizer:
    """The optimiser of a method's parameters, and of nothing else."""
    if settings.optimiser == "sgd":
        return torch.optim.SGD(
            method.parameters(), settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    return torch.optim.AdamW(method.parameters(), settings.lr, weight_decay=settings.weight_decay, fused=True)
