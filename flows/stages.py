"""Stages as Prefect tasks: side by side on the CPU cores and GPUs, each after those it needs, and again where that may
help."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from graphlib import TopologicalSorter

from prefect import State, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound
from prefect.futures import PrefectFuture, as_completed

from cones.common.errors import ConesError
from cones.common.process import compute_threads, cores
from flows.batches import Batch, batch_size
from flows.errands import Errand, Pool
from flows.gpus import gpus, some_gpus
from flows.graph import Stage
from flows.processes import Programs
from flows.signs import Signs

GPU_LIMIT = "cones-gpu"
"""A Prefect concurrency limit that GPU stages of all machines count against, once it exists."""


def may_pass(task: object, task_run: object, state: State) -> bool:
    """Retry what may go well with nothing changed; a mistake in params.yaml or in the data stays one."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, ConesError) and error.may_pass


@task(
    task_run_name="{stage.name}",
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=may_pass,
    cache_policy=NO_CACHE,
)
def reproduce(stage: Stage, batch: Batch | Errand, signs: Signs) -> None:
    """Bring one stage of a batch up to date, here or on another machine; `signs` tell the GPU that it has here.

    A search that was killed goes on from its checkpoint when it is tried again.
    """
    log = get_run_logger().info
    if isinstance(batch, Errand):
        batch.run(stage.name, log)
        return
    count = stage.processes if stage.gpu else 0
    with signs.lending(stage.name) as lent, stage_environment(count, log, lent) as environment:
        batch.run(stage.name, environment, log)


@contextmanager
def stage_environment(
    count: int, log: Callable[[str], None], on_lent: Callable[[str], None] = lambda devices: None
) -> Iterator[dict[str, str]]:
    """The variables that say what a stage computes with; one that wants `count` GPUs has them to itself, where there
    are some. `on_lent` is told which, and "" before.

    That is as many threads as under a plain `dvc repro`, fewer would change the last bits of its results; they wait for
    each other without spinning, since they share the cores.
    """
    environment = {
        "OMP_NUM_THREADS": str(compute_threads()), "OMP_WAIT_POLICY": "passive", "PYTHONUNBUFFERED": "1"
    }  # fmt: skip
    devices = gpus() if count else []
    if not devices:
        yield environment
        return
    on_lent("")
    with gpu_slots(count), some_gpus(devices, count) as lent:
        on_lent(",".join(lent))
        log(f"on GPU {', '.join(lent)}")
        yield {**environment, "CUDA_VISIBLE_DEVICES": ",".join(lent)}


def gpu_slots(count: int) -> AbstractContextManager[None]:
    """Leased slots of the limit on GPU stages, one a GPU; nothing where nobody has made that limit. `ConesError` where
    it is lower."""
    try:
        with get_client(sync_client=True) as client:
            limit = client.read_global_concurrency_limit_by_name(GPU_LIMIT).limit
    except ObjectNotFound:
        return nullcontext()
    if count > limit:
        raise ConesError(
            f"a row with `processes: {count}` wants {count} slots of the limit `{GPU_LIMIT}`, which has {limit}; "
            f"`prefect gcl update {GPU_LIMIT} --limit {count}` raises it, or lower `processes`"
        )
    return concurrency(GPU_LIMIT, occupy=count)


def run_stages(
    graph: dict[str, Stage], parallel: int, programs: Programs, pool: Pool | None = None, signs: Signs | None = None
) -> list[str]:
    """Run stages side by side, at most `parallel` at once, each after those it needs; the names of those that failed.

    What needs a failed stage is not run, everything else is. The CPU cores are divided among the stages that can run.
    Where more short stages of one kind are ready than can run at once, a DVC process gets several of them.
    With a `pool`, the stages that want a GPU are made by its workers.
    """
    signs = signs or Signs()
    order = TopologicalSorter({name: stage.needs for name, stage in graph.items()})
    order.prepare()
    futures: dict[str, PrefectFuture] = {}
    waiting: list[str] = []
    running: dict[PrefectFuture, tuple[str, Batch | Errand, float]] = {}
    bad: list[str] = []
    users = dict.fromkeys(cores(), 0)
    seconds: dict[str, list[float]] = defaultdict(list)
    lent = bool(gpus()) and pool is None

    def submit(batch: Batch | Errand) -> None:
        name = batch.left.pop(0)
        needed = [futures[n] for n in graph[name].needs]
        futures[name] = reproduce.submit(graph[name], batch, signs, wait_for=needed)
        running[futures[name]] = name, batch, time.monotonic()

    while order.is_active():
        waiting += order.get_ready()
        while waiting and len(running) < parallel:
            share = max(1, len(users) // min(parallel, len(running) + len(waiting)))
            on = sorted(users, key=lambda core: users[core])[:share]
            for core in on:
                users[core] += 1
            alone = {n for n in waiting if (lent and graph[n].gpu) or set(graph[n].needs) & set(bad)}
            alike = [n for n in waiting if n not in alone and _kind(n) == _kind(waiting[0])] or waiting[:1]
            away = pool if graph[alike[0]].gpu else None
            names = alike[: batch_size(len(alike), parallel, seconds[_kind(alike[0])], bool(away))]
            waiting = [name for name in waiting if name not in names]
            submit(Errand(names, on, programs, away) if away else Batch(names, on, programs))
        done = next(as_completed(list(running)))
        done.wait()
        name, batch, began = running.pop(done)
        if done.state.is_completed():
            took = time.monotonic() - began
            seconds[_kind(name)].append(batch.seconds(name, took) if isinstance(batch, Errand) else took)
        else:
            bad.append(name)
        order.done(name)
        if batch.left:
            submit(batch)
        else:
            for core in batch.on:
                users[core] -= 1
    return bad


def _kind(name: str) -> str:
    """What a stage is called without the entry that it works on: `search` of `search@cells-cones`."""
    return name.partition("@")[0]
