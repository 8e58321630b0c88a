"""What runs now, of every flow that a Prefect server knows: its stages, where they are, and what waits for what."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, TaskRun

from flows.errands import SILENCE
from flows.graph import Stage
from flows.records import AWAY, graphs_of, tasks_of, unfinished, workers_online
from flows.signs import AT, BEAT, COMMIT, GPU, GPUS, MACHINE


@dataclass(frozen=True)
class Work:
    """A stage, or another task, of a flow that is not over."""

    name: str
    state: str
    machine: str = ""
    gpu: str = ""
    since: datetime | None = None
    """When it began there."""
    waits_for: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """A flow run that is not over."""

    flow: str
    name: str
    id: str
    state: str
    machine: str
    since: datetime | None
    pool: str
    """The work pool whose workers it asks, else the one that itself is of."""
    online: int
    """Workers of that pool."""
    done: int
    failed: int
    """With what did not begin for it."""
    stages: int
    """In all, of a flow that has a graph."""
    work: tuple[Work, ...]
    """What is not over, in the order of the graph."""


def running(client: SyncPrefectClient) -> list[Run]:
    """The flow runs that are not over, the oldest first; what a worker makes for one stands with it."""
    runs = unfinished(client)
    away = [run for flow, run in runs if flow == AWAY]
    home = [(flow, run) for flow, run in runs if flow != AWAY]
    identities = [run.id for _, run in home]
    tasks, graphs = tasks_of(client, identities), graphs_of(client, identities)
    online = workers_online(client, {_pool(run) for _, run in runs} - {""})
    found, taken = [], set[UUID]()
    for flow, run in home:
        sent = [other for other in away if _asked_by(run, other)]
        taken |= {other.id for other in sent}
        found.append(_at_home(flow, run, online.get(_pool(run), 0), tasks[run.id], graphs.get(run.id, {}), sent))
    for run in away:
        if run.id not in taken:
            work = tuple(_sent(run, name) for name in _stages(run))
            found.append(Run(AWAY, *_about(run), _pool(run), online.get(_pool(run), 0), 0, 0, 0, work))
    return found


def _at_home(
    flow: str, run: FlowRun, online: int, tasks: Mapping[str, TaskRun], graph: Mapping[str, Stage],
    away: Sequence[FlowRun],
) -> Run:  # fmt: skip
    """A flow with the stages of its graph."""
    over = {name for name, task in tasks.items() if _is_over(task)}
    failed = {name for name in over & set(graph) if not tasks[name].state.is_completed()}
    sent = {name: other for other in away for name in _stages(other)}
    gpus, work = _gpus(run), list[Work]()
    for name, stage in graph.items():
        waits = tuple(need for need in stage.needs if need not in over)
        task = tasks.get(name)
        if name in over:
            continue
        if name in sent:
            work.append(_sent(sent[name], name))
        elif waits or task is None or task.state is None:
            work.append(Work(name, "waits", waits_for=waits))
        elif task.state.is_running():
            state = "waits for a GPU" if gpus.get(name) == "" else "running"
            if stage.gpu and run.parameters.get("on"):
                state = "is sent or fetched"
            work.append(Work(name, state, _machine(run), gpus.get(name, ""), task.start_time))
        else:
            work.append(Work(name, "is tried again" if task.run_count else "begins", _machine(run)))
    others = [task for name, task in tasks.items() if name not in over and name not in graph]
    work += [Work(t.name, "running", _machine(run), since=t.start_time) for t in others if t.start_time]
    done = len(over & set(graph)) - len(failed)
    return Run(flow, *_about(run), _pool(run), online, done, len(failed), len(graph), tuple(work))


def _about(run: FlowRun) -> tuple[str, str, str, str, datetime | None]:
    state = _silence(run) or (run.state.name.lower() if run.state else "unknown")
    return run.name, str(run.id), state, _machine(run), run.start_time or run.created


def _is_over(task: TaskRun) -> bool:
    """Also of a task that does not begin, as one that it needs has failed."""
    return task.state is not None and (task.state.is_final() or task.state.name == "NotReady")


def _sent(run: FlowRun, name: str) -> Work:
    """A stage that a worker was asked for, with others that travel together."""
    if run.state is None or run.state.is_scheduled():
        return Work(name, "waits for a worker", since=run.expected_start_time)
    names, at = _stages(run), str(run.labels.get(AT, "begins"))
    waits: tuple[str, ...] = ()
    if at == name:
        state = "running"
    elif at not in names:
        state = at
    elif names.index(name) < names.index(at):
        state = "made, not pushed yet"
    else:
        state, waits = "waits", (names[names.index(name) - 1],)
    gpu = "" if waits else str(run.labels.get(GPU, ""))
    return Work(name, _silence(run) or state, _machine(run), gpu, run.start_time, waits)


def _asked_by(run: FlowRun, other: FlowRun) -> bool:
    """Whether a flow waits for a stage of a worker."""
    commit = run.labels.get(COMMIT)
    return bool(commit) and other.parameters.get("commit") == commit and other.work_pool_name == _pool(run)


def _silence(run: FlowRun) -> str:
    """That a process which should speak has not, by what the server last had of it."""
    if run.state is None or not run.state.is_running() or BEAT not in run.labels or run.updated is None:
        return ""
    silence = datetime.now(UTC) - run.updated
    return f"no word for {silence.total_seconds():.0f} seconds" if silence > timedelta(seconds=SILENCE) else ""


def _machine(run: FlowRun) -> str:
    return str(run.labels.get(MACHINE, ""))


def _pool(run: FlowRun) -> str:
    """The work pool that a flow asks, or that a stage is asked of."""
    return str(run.parameters.get("on") or run.work_pool_name or "")


def _stages(run: FlowRun) -> list[str]:
    stages = run.parameters.get("stages")
    return [str(name) for name in stages] if isinstance(stages, list) else []


def _gpus(run: FlowRun) -> dict[str, str]:
    with suppress(ValueError, AttributeError):
        return {str(name): str(gpu) for name, gpu in json.loads(str(run.labels.get(GPUS, "{}"))).items()}
    return {}
