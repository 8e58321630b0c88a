"""What the processes of a row do together, each on its share of every batch: average gradients, bring predictions
together."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import zip_longest
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cones.common.errors import ConesError
from cones.common.launch import MEET
from cones.interfaces.pictures import Predictions, Share

if TYPE_CHECKING:
    from accelerate import Accelerator

PATIENCE = timedelta(days=7)
"""How long one process waits for another: whoever started them ends all when one is gone."""

FAREWELL = 30.0
"""Seconds that a process waits for that end when it has lost the others, so that the one that failed says why."""


def open_accelerator() -> "Accelerator":
    """This process's, which has found the others that `cones.common.launch` started beside it, if any. `ConesError`
    where these are more than the GPUs, and there are any."""
    from accelerate import Accelerator

    if MEET not in os.environ:
        return Accelerator()
    from accelerate.utils import InitProcessGroupKwargs, check_cuda_p2p_ib_support, parse_flag_from_env

    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    count = int(os.environ["WORLD_SIZE"])
    if not cpu and count > torch.cuda.device_count():
        there = torch.cuda.device_count()
        raise ConesError(
            f"`processes: {count}` asks for {count} GPUs, one each, and this stage may use {there}; set `processes` to "
            f"at most {there}, or run it where there are more"
        )
    if not cpu and not check_cuda_p2p_ib_support():
        os.environ |= {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"}  # as `accelerate launch` does
    place = f"file://{os.environ[MEET]}"
    if not cpu:
        place += f"?rank={os.environ['RANK']}&world_size={count}"
    return Accelerator(cpu=cpu, kwargs_handlers=[InitProcessGroupKwargs(init_method=place, timeout=PATIENCE)])


def share_of(accelerator: "Accelerator") -> Share:
    """What this process takes of each batch."""
    return Share(accelerator.process_index, accelerator.num_processes)


def summed(accelerator: "Accelerator", parameters: Iterable[nn.Parameter], loss: Tensor) -> Tensor:
    """The sum of a number over the processes; the gradients of some parameters become their sums, too.

    A parameter that no process has a gradient for keeps none. All goes in one piece: what trains is a part of what is
    called, or stands before it, so that no module's `forward` could be wrapped in `DistributedDataParallel`, and is too
    little for a transfer beside the backward pass to gain much.
    """
    if accelerator.num_processes == 1:
        return loss
    trained = [p for p in parameters if p.requires_grad]
    has = torch.tensor([float(p.grad is not None) for p in trained], device=loss.device)
    grads = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained]
    with _lost():
        flat = accelerator.reduce(torch.cat([loss.detach().reshape(1), has, *grads]), "sum")
    total, has, rest = flat.split([1, len(trained), len(flat) - 1 - len(trained)])
    for there, parameter, sums in zip(has.tolist(), trained, rest.split([p.numel() for p in trained])):
        parameter.grad = sums.view_as(parameter) if there else None
    return total.squeeze(0)


def gathered(accelerator: "Accelerator", mine: list[Predictions]) -> list[Predictions]:
    """Predictions for all pictures, in order, of those that each process has for its part of every batch."""
    if accelerator.num_processes == 1:
        return mine
    from accelerate.utils import gather_object

    with _lost():
        lists = gather_object([mine])
    return [one for batch in zip_longest(*lists) for one in batch if one is not None]


@contextmanager
def _lost() -> Iterator[None]:
    """Wait for the end where another process has gone."""
    try:
        yield
    except RuntimeError:
        time.sleep(FAREWELL)
        raise
