"""Searching: a method's parameters in epochs over its pictures, each once in a random view."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from cones.common.errors import SearchError
from cones.interfaces.pictures import WHOLE, Pictures, Share
from cones.interfaces.processes import gathered, share_of, summed
from cones.interfaces.protocols import Backbone, text_of
from cones.interfaces.randomness import generator_for
from cones.methods.searched import Searched
from cones.search.checkpoint import Progress
from cones.search.loop import OnLine, optimise
from cones.search.outcome import SearchResult
from cones.search.schedule import learning_rate
from cones.tasks.parts import task_of
from cones.tasks.task import predict_all
from cones.tasks.texts import at_once

if TYPE_CHECKING:
    from accelerate import Accelerator


def search(
    method: nn.Module,
    backbone: Backbone,
    names: Sequence[str],
    train: Pictures,
    val: Pictures,
    settings: Searched,
    seed: int,
    accelerator: "Accelerator",
    checkpoint: Path | None = None,
    on_epoch: OnLine = lambda line: None,
    task: str = "classification",
    watch: Callable[[int], None] = lambda epoch: None,
) -> SearchResult:
    """Search a method's parameters; see `cones.search.loop.optimise`.

    Without pictures in `val` the last step is kept. `watch` is called after each epoch, and neither its time nor its
    use of the text encoder is counted. Raises `SearchError` naming the step and the rate when the loss is not finite.
    """
    work = Epochs(method, backbone, names, train, val, settings, seed, accelerator, task, watch)
    return optimise(work, task, checkpoint, on_epoch)


@dataclass(frozen=True)
class Batch:
    """Pictures of one step by their index (B,), each in a view (B,), and the seed of what is drawn in it."""

    indices: Tensor
    views: Tensor
    stream: int

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.stream)

    def parts(self, count: int, share: Share = WHOLE) -> Iterator[tuple[Tensor, Tensor, float]]:
        """What a share has of it, cut into so many, one after the other: indices, views, and their weight in it."""
        rows = share.of(len(self.indices)).rows
        mine, views_of_mine = self.indices[rows], self.views[rows]
        size = math.ceil(len(mine) / count) or 1
        for indices, views in zip(mine.split(size), views_of_mine.split(size)):
            if len(indices):
                yield indices, views, len(indices) / len(self.indices)


class Epochs:
    """A search as `Work`: see there."""

    def __init__(
        self,
        method: nn.Module,
        backbone: Backbone,
        names: Sequence[str],
        train: Pictures,
        val: Pictures,
        settings: Searched,
        seed: int,
        accelerator: "Accelerator",
        task: str,
        watch: Callable[[int], None] = lambda epoch: None,
    ) -> None:
        self.backbone, self.names, self.train, self.val = backbone, names, train, val
        self.settings, self.seed, self.accelerator = settings, seed, accelerator
        self.task, self._watch = task_of(task), watch
        self.objective = backbone.objective(settings)
        method.to(accelerator.device)
        self.module, self.method = method, method
        self.optimiser = optimiser_for(method.parameters(), settings)
        self.share = share_of(accelerator)
        self.batch_size = settings.batch_size * self.share.processes
        self.units, self.steps_a_unit = settings.epochs, math.ceil(len(train) / self.batch_size)
        self.validate_every = settings.validate_every if len(val) else None
        self.patience = settings.patience
        self.checkpoint_seconds = settings.checkpoint_seconds
        self.losses: list[Tensor] = []
        """Of the steps that are done of the epoch under way."""
        self.values: list[float] = []
        """Of the last epoch's steps."""

    def begin(self, progress: Progress) -> None:
        if progress.curves:
            self.backbone.text_encoder_calls = progress.text_encoder_calls
        alone = self.share.processes == 1  # else `summed` does what the wrapper for several would
        self.method = self.accelerator.prepare_model(self.method, evaluation_mode=not alone)
        if self.accelerator.scaler is not None:  # otherwise the wrapper adds nothing, and costs as much as a step
            self.optimiser = self.accelerator.prepare(self.optimiser)
        self.losses = [torch.tensor(loss, device=self.accelerator.device) for loss in progress.losses]

    def steps(self, unit: int) -> Iterator[int]:
        """The steps of an epoch that are not done yet."""
        batches = self.batches(unit)
        for i in range(len(self.losses), len(batches)):
            rate = learning_rate(self.settings, unit * len(batches) + i, len(batches))
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            self.losses.append(self._step(batches[i]))
            if i + 1 < len(batches):
                yield unit * len(batches) + i + 2
        self.values = finite(self.losses, self.settings, unit)
        self.losses = []

    def batches(self, unit: int) -> list["Batch"]:
        """Those of an epoch: each picture once, in a random view."""
        generator, size = generator_for(self.seed, unit), self.batch_size
        order = torch.randperm(len(self.train), generator=generator)
        views = torch.randint(self.train.views, (len(self.train),), generator=generator)
        parts = list(zip(order.split(size), views.split(size)))
        streams = torch.randint(2**32, (len(parts),), generator=generator).tolist()
        return [Batch(*part, stream) for part, stream in zip(parts, streams)]

    def loss(self, indices: Tensor, views: Tensor, generator: torch.Generator) -> Tensor:
        """That of some pictures by their index (B,), each in a view (B,)."""
        features = self.train.batch(indices, views).to(self.accelerator.device)
        with self.accelerator.autocast():
            text = text_of(self.method, self.backbone, self.names, features, generator)
            return self.objective(features, text, generator)

    def _step(self, batch: "Batch") -> Tensor:
        """One step on some pictures; the loss before it."""
        losses, generator = [], batch.generator()
        for indices, views, weight in batch.parts(self.settings.accumulate, self.share):
            loss = self.loss(indices, views, generator) * weight
            self.accelerator.backward(loss)
            losses.append(loss.detach())
        mine = torch.stack(losses).sum() if losses else torch.zeros((), device=self.accelerator.device)
        whole = summed(self.accelerator, self.module.parameters(), mine)
        self.optimiser.step()
        for parameter in self.method.parameters():
            parameter.grad = None
        return whole

    def note(self, progress: Progress) -> None:
        progress.losses = torch.stack(self.losses).tolist() if self.losses else []
        progress.text_encoder_calls = self.backbone.text_encoder_calls

    def line(self, unit: int, validated: bool) -> dict[str, float]:
        line: dict[str, float] = {"epoch": unit, "step": unit * self.steps_a_unit}
        return line | ({"train_loss": sum(self.values) / len(self.values)} if unit else {})

    def metrics(self) -> dict[str, float]:
        text = partial(text_of, self.method, self.backbone, self.names)
        reads = self.settings.reads_pictures
        batches = self.val.batches(at_once(self.task.batch, len(self.names), reads), self.share)
        predictions = predict_all(self.backbone, batches, text, self.task, self.accelerator.device, reads)
        return self.task.quick(gathered(self.accelerator, predictions), self.val, self.names)

    def watch(self, unit: int) -> None:
        calls = self.backbone.text_encoder_calls
        if unit:
            self._watch(unit)
        self.backbone.text_encoder_calls = calls

    def copy(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.module.state_dict().items()}

    def restore(self, best: dict[str, Tensor]) -> None:
        self.module.load_state_dict(best)


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


def optimiser_for(trained: ParamsT, settings: Searched) -> torch.optim.Optimizer:
    """The optimiser of a method's parameters, and of nothing else."""
    if settings.optimiser == "sgd":
        return torch.optim.SGD(trained, settings.rate, momentum=settings.momentum, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(trained, settings.rate, weight_decay=settings.weight_decay, fused=True)
