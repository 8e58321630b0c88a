"""The loop of a fine-tuning: steps on weights and embeddings, validation, the best kept, stop and resume."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cones.common.errors import SearchError
from cones.features.live import Pictures
from cones.finetuning.settings import FinetuneConfig
from cones.interfaces.pictures import Features
from cones.interfaces.randomness import generator_for
from cones.search.checkpoint import Keeper, resume, save_checkpoint
from cones.search.loop import seconds_of
from cones.search.outcome import SearchResult
from cones.search.schedule import LARGEST_GRADIENT, rate_share
from cones.search.trained import Trained

if TYPE_CHECKING:
    from accelerate import Accelerator

Metrics = dict[str, float]
OnStep = Callable[[dict[str, float]], None]


def finetune(
    trained: Trained,
    loss_of: Callable[[Features, torch.Generator], Tensor],
    metrics_of: Callable[[], Metrics],
    train: Pictures,
    settings: FinetuneConfig,
    seed: int,
    accelerator: "Accelerator",
    task: str,
    checkpoint: Path | None = None,
    on_step: OnStep = lambda line: None,
    watch: Callable[[int], None] = lambda step: None,
) -> SearchResult:
    """Train what trains; the best by `metrics_of`, the start among them, is what it holds when this ends.

    Every random choice comes from (seed, step), so a resumed run has the same bits. With `checkpoint` the state is
    written there every `checkpoint_seconds`, and a run that finds one goes on from it; its `Progress` counts steps
    where that of a search counts epochs. `watch` is called at the start and after each step, and its time is not
    counted.
    """
    began = time.perf_counter()
    optimiser = optimiser_for(trained, settings)
    progress = resume(checkpoint, trained, optimiser)
    if accelerator.scaler is not None:
        optimiser = accelerator.prepare(optimiser)
    began -= progress.seconds

    def save() -> None:
        assert checkpoint is not None, "a fine-tuning without a checkpoint keeps nothing"
        progress.seconds = time.perf_counter() - began
        save_checkpoint(checkpoint, progress, trained, optimiser)

    with Keeper(None if checkpoint is None else save, settings.checkpoint_seconds) as keep:
        if not progress.curves:
            began += seconds_of(watch, 0)
            on_step(progress.validated({"step": 0}, metrics_of(), task, trained.copy))
        for step in range(progress.epoch, settings.steps):
            loss = train_step(trained, loss_of, train, settings, optimiser, accelerator, seed, step)
            trained.losses[step % settings.validate_every] = loss
            progress.epoch = step + 1
            began += seconds_of(watch, progress.epoch)
            line: dict[str, float] = {"step": step + 1}
            if not progress.epoch % settings.validate_every or progress.epoch == settings.steps:
                mean = trained.losses[: step % settings.validate_every + 1].mean().item()
                epochs = (step + 1) * min(settings.batch_size, len(train)) / len(train)
                line |= {"epoch": round(epochs, 2), "train_loss": mean}
                line = progress.validated(line, metrics_of(), task, trained.copy)
            on_step(line)
            keep("its end" if progress.epoch == settings.steps else f"step {progress.epoch + 1}")
    progress.refuse_no_score(task)
    trained.restore(progress.best)
    return SearchResult(progress.curves, progress.epoch, progress.best_epoch, time.perf_counter() - began)


def train_step(
    trained: Trained,
    loss_of: Callable[[Features, torch.Generator], Tensor],
    train: Pictures,
    settings: FinetuneConfig,
    optimiser: Any,
    accelerator: "Accelerator",
    seed: int,
    step: int,
) -> float:
    """One step on pictures drawn at random; the loss before it."""
    generator = generator_for(seed, step)
    share = rate_share(step, settings.steps)
    for group in optimiser.param_groups:
        group["lr"] = group["initial_lr"] * share
    features = train.sample(settings.batch_size, generator).to(accelerator.device)
    with accelerator.autocast():
        loss = loss_of(features, generator)
    if not math.isfinite(value := loss.item()):
        rates = f"{settings.lr * share:.3g} for weights and {settings.prompt_lr * share:.3g} for embeddings"
        raise SearchError(
            f"the loss is {value} at step {step + 1} with learning rates {rates}; lower `lr` or `prompt_lr`"
        )
    if loss.requires_grad:  # pictures without objects teach a mask head nothing
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(trained.parameters(), LARGEST_GRADIENT)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return value


def optimiser_for(trained: Trained, settings: FinetuneConfig) -> torch.optim.Optimizer:
    """AdamW of the weights, and of the embeddings at their own rate and without decay."""
    groups: list[dict[str, Any]] = [
        {"params": list(trained.weights), "initial_lr": settings.lr, "weight_decay": settings.weight_decay}
    ]
    if trained.embeds is not None:
        groups.append({"params": [trained.embeds], "initial_lr": settings.prompt_lr, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, settings.lr, fused=True)
