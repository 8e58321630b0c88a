"""The learning rate that `lr: auto` stands for: several are searched side by side, and validation chooses."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from cones.common.errors import SearchError
from cones.interfaces.processes import summed
from cones.search.checkpoint import Progress
from cones.search.epochs import Batch, Epochs, optimiser_for
from cones.search.loop import optimise
from cones.search.schedule import learning_rate
from cones.tasks.ranking import rank

RACE = "rates.safetensors"
"""The file of its state, beside that of the row's search."""
STEPS = range(-3, 4)
"""Half powers of ten around the published rate that are tried."""
SIXTEENTHS = (1, 2, 4)
"""Of a row's epochs after its warm-up: after the first two the worse half ends, after the last the best wins."""

LASTING = 4
"""Times its patience, a row that may end early is expected to last: the parts are of that where it is less."""


def choose_rate(
    work: Epochs, task: str, checkpoint: Path | None = None, note: Callable[[str], None] = lambda line: None
) -> tuple[list[dict[str, float]], float]:
    """Search at each rate of the grid by successive halving (Jamieson and Talwalkar 2016); `work` stays as it is.

    All see the batches, views and schedule that the row itself would have, for its warm-up and a quarter of the other
    epochs that it is expected to last. Returns a line a rate, best first, with `lr`, the `epochs` it had and its best
    validation metrics, and the seconds that it took. Raises `SearchError` where the loss was finite at none.
    """
    race = Race(work, task, note)
    done = optimise(race, task, None if checkpoint is None else checkpoint.with_name(RACE))
    return race.table(), done.seconds


class Race:
    """Searches at several rates as `Work`, whose units end where validation decides.

    Where only embeddings on the text side train, on features that are kept, the rates are one batched problem; else one
    is searched after the other, which holds no more memory than one.
    """

    patience: int | None = None

    def __init__(self, work: Epochs, task: str, note: Callable[[str], None]) -> None:
        settings, self.work, self.task, self._note = work.settings, work, task, note
        self.accelerator = work.accelerator
        self.rates = [float(f"{settings.rate * 10 ** (step / 2):.3g}") for step in STEPS]
        self.names = [f"method.{name}" for name, _ in work.method.named_parameters()]
        start = [p.detach() for p in work.method.parameters()]
        self.module = nn.ModuleList(nn.ParameterList(p.clone() for p in start) for _ in self.rates)
        groups = [{"params": list(of), "lr": rate} for of, rate in zip(self.module, self.rates)]
        self.optimiser = optimiser_for(groups, settings)
        epochs = settings.epochs if settings.patience is None else min(settings.epochs, LASTING * settings.patience)
        warm = min(settings.warmup_epochs, epochs - 1)
        ends = {warm + math.ceil(part * (epochs - warm) / 16) for part in SIXTEENTHS}
        self.ends = sorted(ends)  # epochs
        self.units, self.validate_every, self.steps_a_unit = len(self.ends), 1, 0
        self.checkpoint_seconds = settings.checkpoint_seconds
        kept = not settings.enters_image_encoder and not settings.reads_pictures
        self.batched = kept and settings.site == "text_embeds" and work.backbone.family == "dual_encoder"
        self._holder, self._done, self._progress = Holder(work.method), 0, Progress()

    def begin(self, progress: Progress) -> None:
        self._progress, self._done = progress, len(progress.losses)
        if progress.curves:
            self.work.backbone.text_encoder_calls = progress.text_encoder_calls
        if self.work.accelerator.scaler is not None:
            self.optimiser = self.work.accelerator.prepare(self.optimiser)

    def steps(self, unit: int) -> Iterator[int]:
        epochs, still = range(self.ends[unit - 1] if unit else 0, self.ends[unit]), self.still()
        rates = ", ".join(f"{self.rates[rate]:g}" for rate in still)
        self._note(f"lr auto, epochs {epochs.start + 1} to {epochs.stop}: {rates}")
        number, settings = self.work.steps_a_unit, self.work.settings
        for epoch in epochs:
            for step, batch in enumerate(self.work.batches(epoch), epoch * number):
                if step < epochs.start * number + self._done:
                    continue
                for group, rate in zip(self.optimiser.param_groups, self.rates):
                    group["lr"] = learning_rate(settings.model_copy(update={"lr": rate}), step, number)
                self._step(batch, still)
                self._done += 1
                if step + 1 < epochs.stop * number:
                    yield step + 2
        self._done = 0

    def _step(self, batch: Batch, still: Sequence[int]) -> None:
        groups = [still] if self.batched else [[rate] for rate in still]
        for together in groups:
            generator = batch.generator()
            for indices, views, weight in batch.parts(self.work.settings.accumulate, self.work.share):
                losses = self._losses(together, lambda: self.work.loss(indices, views, generator))  # noqa: B023
                self.work.accelerator.backward(losses.sum() * weight)
        summed(self.accelerator, self.module.parameters(), torch.zeros((), device=self.accelerator.device))
        self.optimiser.step()
        self.optimiser.zero_grad()

    def _losses(self, rates: Sequence[int], loss: Callable[[], Tensor]) -> Tensor:
        """What `loss` is with the parameters of each rate (R,)."""
        if len(rates) == 1:
            return self._holder.under(self._parameters(rates[0]), loss)[None]
        stacked = {n: torch.stack(of) for n, *of in zip(self.names, *(self.module[rate] for rate in rates))}
        return vmap(lambda of: self._holder.under(of, loss))(stacked)

    def _parameters(self, rate: int) -> dict[str, Tensor]:
        return dict(zip(self.names, self.module[rate]))

    def metrics(self) -> dict[str, float]:
        """The best rate's, and beside them each one's, named by its number."""
        still = self.still() if self._progress.curves else [0]  # all start at one place
        whole = [rate for rate in still if all(p.isfinite().all() for p in self.module[rate])]
        with torch.no_grad():
            of_each = {rate: self._holder.under(self._parameters(rate), self.work.metrics) for rate in whole}
        best = max(of_each.values(), key=lambda metrics: rank(self.task, metrics)) if of_each else {}
        return best | {f"{rate} {name}": value for rate, of in of_each.items() for name, value in of.items()}

    def still(self) -> list[int]:
        """The rates that are left after the validations so far."""
        left = list(range(len(self.rates)))
        for unit in range(1, min(len(self._progress.curves), self.units)):
            left = sorted(self._ranked(left, unit)[: math.ceil(len(left) / 2)])
        return left

    def _ranked(self, rates: Sequence[int], unit: int) -> list[int]:
        """Rates by the best of their validations up to a unit; of equals the one nearer to the middle comes first."""
        middle = len(self.rates) // 2
        return sorted(rates, key=lambda r: (rank(self.task, self._best(r, unit)), -abs(r - middle)), reverse=True)

    def _best(self, rate: int, unit: int) -> dict[str, float]:
        return max(self._validations(rate, unit), key=lambda metrics: rank(self.task, metrics), default={})

    def _validations(self, rate: int, unit: int) -> list[dict[str, float]]:
        """A rate's metrics at the ends of the units that it was searched in, up to one."""
        head = f"val_{rate} "
        of = [{k.removeprefix(head): v for k, v in line.items() if k.startswith(head)}
              for line in self._progress.curves[1 : unit + 1]]  # fmt: skip
        return [metrics for metrics in of if metrics]

    def table(self) -> list[dict[str, float]]:
        """A line a rate, best first; see `choose_rate`."""
        left, last = self.still(), self.units
        order = self._ranked(left, last) + self._ranked([r for r in range(len(self.rates)) if r not in left], last)
        if not self._best(order[0], last):
            tried = ", ".join(f"{rate:g}" for rate in self.rates)
            raise SearchError(f"the loss was not finite at any of the learning rates {tried}; set a lower `lr`")
        ends = [0, *self.ends]
        return [{"lr": self.rates[r], "epochs": ends[len(self._validations(r, last))], **self._best(r, last)}
                for r in order]  # fmt: skip

    def line(self, unit: int, validated: bool) -> dict[str, float]:
        return {"epoch": self.ends[unit - 1] if unit else 0}

    def watch(self, unit: int) -> None:
        """Nothing."""

    def note(self, progress: Progress) -> None:
        progress.losses = [0.0] * self._done
        progress.text_encoder_calls = self.work.backbone.text_encoder_calls

    def copy(self) -> dict[str, Tensor]:
        return {}

    def restore(self, best: Mapping[str, Tensor]) -> None:
        """Nothing: the row is searched from its start, at the rate that won."""


class Holder(nn.Module):
    """Holds a method, so that anything can be called while other parameters stand in it."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method

    def forward(self, call: Callable[[], Any]) -> Any:
        return call()

    def under(self, parameters: Mapping[str, Tensor], call: Callable[[], Any]) -> Any:
        """What `call` gives with these parameters in the method's place."""
        return functional_call(self, dict(parameters), (call,))
