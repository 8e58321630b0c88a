"""What a Prefect server has of the flows of this project that are not over."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterSubFlowRuns,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType, TaskRun, WorkerStatus
from prefect.client.schemas.sorting import FlowRunSort, TaskRunSort

from flows.graph import Stage
from flows.signs import STAGES, stages_told

AWAY = "stage"
"""The flow of a worker."""

FLOWS = ("pipeline", "row", AWAY)
UNFINISHED = [StateType.RUNNING, StateType.PENDING, StateType.SCHEDULED, StateType.CANCELLING, StateType.PAUSED]
PAGE = 200
"""Things in one answer of the server, at most."""


def unfinished(client: SyncPrefectClient) -> list[tuple[str, FlowRun]]:
    """Those of our flows that are not over, with their flow's name; not what a schedule has for later."""
    ours = FlowFilter(name=FlowFilterName(any_=list(FLOWS)))
    names = {flow.id: flow.name for flow in client.read_flows(flow_filter=ours)}
    state = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNFINISHED)))
    found = _pages(
        lambda offset: client.read_flow_runs(
            flow_filter=ours, flow_run_filter=state, sort=FlowRunSort.EXPECTED_START_TIME_ASC, limit=PAGE,
            offset=offset,
        )
    )  # fmt: skip
    now = datetime.now(UTC)
    due = (run for run in found if not (run.expected_start_time and run.expected_start_time > now))
    return [(names[run.flow_id], run) for run in due if run.flow_id in names]


def tasks_of(client: SyncPrefectClient, runs: list[UUID]) -> dict[UUID, dict[str, TaskRun]]:
    """The tasks of some flow runs by their names, without those that stand for flow runs that they started."""
    found: dict[UUID, dict[str, TaskRun]] = defaultdict(dict)
    if runs:
        own = TaskRunFilter(subflow_runs=TaskRunFilterSubFlowRuns(exists_=False))
        for task in _pages(
            lambda offset: client.read_task_runs(
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=runs)), task_run_filter=own,
                sort=TaskRunSort.EXPECTED_START_TIME_ASC, limit=PAGE, offset=offset,
            )
        ):  # fmt: skip
            found[task.flow_run_id][task.name] = task
    return found


def graphs_of(client: SyncPrefectClient, runs: list[UUID]) -> dict[UUID, dict[str, Stage]]:
    """What each flow run said of its stages when it began."""
    graphs = {}
    if runs:
        told = ArtifactFilter(key=ArtifactFilterKey(any_=[STAGES]), flow_run_id=ArtifactFilterFlowRunId(any_=runs))
        for artefact in _pages(lambda offset: client.read_artifacts(artifact_filter=told, limit=PAGE, offset=offset)):
            graphs[artefact.flow_run_id] = stages_told(artefact.data)
    return graphs


def workers_online(client: SyncPrefectClient, pools: Iterable[str]) -> dict[str, int]:
    """How many workers of work pools are online, of those that there are."""
    named = WorkPoolFilter(name=WorkPoolFilterName(any_=sorted(pools)))
    found = [pool.name for pool in client.read_work_pools(work_pool_filter=named)] if pools else []
    return {
        name: sum(w.status == WorkerStatus.ONLINE for w in client.read_workers_for_work_pool(name)) for name in found
    }


def _pages(read: Callable[[int], Sequence[Any]]) -> Iterable[Any]:
    """All that a reading by offsets gives."""
    offset, page = 0, read(0)
    while page:
        yield from page
        offset += len(page)
        page = read(offset) if len(page) == PAGE else ()
