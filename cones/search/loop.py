"""The one search loop: optimise a method's parameters on cached features, validate, keep the best, stop, resume."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cones.common.errors import SearchError
from cones.features.store import FeatureStore
from cones.interfaces.protocols import Backbone, text_of
from cones.interfaces.randomness import generator_for
from cones.methods.searched import Searched
from cones.search.checkpoint import Keeper, Progress, resume, save_checkpoint
from cones.search.outcome import SearchResult
from cones.search.schedule import learning_rate
from cones.tasks.table import TASKS
from cones.tasks.task import predict_all

if TYPE_CHECKING:
    from accelerate import Accelerator


def seconds_of(call: Callable[..., object], *given: Any) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    call(*given)
    return time.perf_counter() - began


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
    """Search a method's parameters; the task's metrics on `val` choose the best, the start among them.

    Every random choice comes from (seed, epoch, step), so a resumed search has the same bits. With `checkpoint` the
    state is written there every `checkpoint_seconds`, and a search that finds one goes on from it. `watch` is called
    after each epoch, and neither its time nor its use of the text encoder is counted. Raises `SearchError` naming the
    step and the rate when the loss is not finite, and where no validation gives a finite score.
    """
    began = time.perf_counter()
    method.to(accelerator.device)
    optimiser = optimiser_for(method, settings)
    progress = resume(checkpoint, method, optimiser)
    if progress.curves:
        backbone.text_encoder_calls = progress.text_encoder_calls
    method = accelerator.prepare(method)
    if accelerator.scaler is not None:  # otherwise the wrapper adds nothing, and costs as much as a step on CLIP
        optimiser = accelerator.prepare(optimiser)
    bare: nn.Module = accelerator.unwrap_model(method)
    began -= progress.seconds
    steps_an_epoch = math.ceil(len(train) / settings.batch_size)
    losses: list[Tensor] = []

    def copy() -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in bare.state_dict().items()}

    def validate(line: dict[str, float]) -> None:
        text = partial(text_of, method, backbone, names)
        found = predict_all(backbone, val.batches(TASKS[task].batch), text, TASKS[task], accelerator.device)
        on_epoch(progress.validated(line, TASKS[task].quick(found, val, names), task, copy))

    def save() -> None:
        assert checkpoint is not None, "a search without a checkpoint keeps nothing"
        progress.seconds = time.perf_counter() - began
        progress.losses = torch.stack(losses).tolist() if losses else []
        progress.text_encoder_calls = backbone.text_encoder_calls
        save_checkpoint(checkpoint, progress, bare, optimiser)

    with Keeper(None if checkpoint is None else save, settings.checkpoint_seconds) as keep:
        if not progress.curves:
            validate({"epoch": 0, "step": 0})
        for epoch in range(progress.epoch, settings.epochs):
            if out_of_patience(progress, settings):
                break
            losses[:] = [torch.tensor(loss, device=accelerator.device) for loss in progress.losses]
            for _ in train_steps(method, backbone, names, train, settings, optimiser, accelerator, seed, epoch, losses):
                if len(losses) < steps_an_epoch:
                    keep(f"step {epoch * steps_an_epoch + len(losses) + 1}")
            values = finite(losses, settings, epoch)
            losses.clear()
            progress.epoch, progress.losses = epoch + 1, []
            calls = backbone.text_encoder_calls
            began += seconds_of(watch, progress.epoch)
            backbone.text_encoder_calls = calls
            step, mean = progress.epoch * steps_an_epoch, sum(values) / len(values)
            line = {"epoch": progress.epoch, "step": step, "train_loss": mean}
            if progress.epoch % settings.validate_every and progress.epoch < settings.epochs:
                on_epoch(line)
            else:
                validate(line)
            over = progress.epoch == settings.epochs or out_of_patience(progress, settings)
            keep("its end" if over else f"step {step + 1}")

    progress.refuse_no_score(task)
    bare.load_state_dict(progress.best)
    steps = progress.epoch * steps_an_epoch
    return SearchResult(progress.curves, steps, progress.best_epoch * steps_an_epoch, time.perf_counter() - began)


def out_of_patience(progress: Progress, settings: Searched) -> bool:
    """Whether the last validation ends a search; its first one after the start never does."""
    if settings.patience is None or progress.curves[-1]["epoch"] != progress.epoch:
        return False
    return progress.epoch - max(progress.best_epoch, settings.validate_every) >= settings.patience


def train_steps(
    method: nn.Module,
    backbone: Backbone,
    names: Sequence[str],
    train: FeatureStore,
    settings: Searched,
    optimiser: Any,
    accelerator: "Accelerator",
    seed: int,
    epoch: int,
    losses: list[Tensor],
) -> Iterator[Tensor]:
    """The steps of an epoch that are not done yet: each training picture once, in a random view.

    `losses` has one for each step that is done, and gets those of the others.
    """
    generator = generator_for(seed, epoch)
    order = torch.randperm(len(train), generator=generator)
    views = torch.randint(train.views, (len(train),), generator=generator)
    batches = list(zip(order.split(settings.batch_size), views.split(settings.batch_size)))
    streams = torch.randint(2**32, (len(batches),), generator=generator).tolist()
    trained = list(method.parameters())
    for i in range(len(losses), len(batches)):
        rows, seen = batches[i]
        generator = torch.Generator().manual_seed(streams[i])
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
        yield losses[-1]


def finite(losses: Sequence[Tensor], settings: Searched, epoch: int) -> list[float]:
    """The losses of an epoch's steps; `SearchError` for one that is not finite. They are read once an epoch, as reading
    one waits for a GPU."""
    values = torch.stack(list(losses)).tolist()
    for i, value in enumerate(values):
        if not math.isfinite(value):
            step = epoch * len(values) + i
            rate = learning_rate(settings, step, len(values))
            raise SearchError(f"the loss is {value} at step {step + 1} with learning rate {rate:.3g}; lower `lr`")
    return values


def optimiser_for(method: nn.Module, settings: Searched) -> torch.optim.Optimizer:
    """The optimiser of a method's parameters, and of nothing else."""
    if settings.optimiser == "sgd":
        return torch.optim.SGD(
            method.parameters(), settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    return torch.optim.AdamW(method.parameters(), settings.lr, weight_decay=settings.weight_decay, fused=True)
