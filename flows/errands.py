"""Stages sent to the workers of a Prefect work pool, and what they made fetched."""

import json
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, WorkerStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelling, Crashed
from prefect.utilities.callables import parameter_schema

from cones.common.errors import ConesError
from cones.common.files import content_hash, read_json
from cones.common.layout import ERRANDS
from cones.common.redaction import redacted
from flows.clones import commit_here
from flows.processes import Programs
from flows.signs import BEAT, MACHINE

SILENCE = 45.0
"""Seconds without a word of a worker that runs a stage, after which it counts as gone."""

START_SILENCE, PULL_SILENCE = 50.0, 600.0
"""The same before its first word, while a process starts; in a pool whose workers start containers, an image may have
to be pulled for that."""

SERVER_SILENCE = 600.0
"""Seconds without an answer of Prefect's server, after which a flow no longer waits for what it sent away."""

LOOK_SECONDS = 1.0

SENDER = "cones.sender."
"""How the label of each flow that waits for a run begins; true as long as it does."""

TRAVEL = ("python", "-m", "flows.travel")


class Lost(ConesError):
    """A worker ended before its stage did."""

    may_pass = True


class StageFailed(ConesError):
    """A stage ended badly on a worker."""

    def __init__(self, message: str, may_pass: bool) -> None:
        super().__init__(message)
        self.may_pass = may_pass


class Pool:
    """A work pool whose workers are clones of this project, each for itself, at whatever commit."""

    def __init__(self, name: str) -> None:
        """`ConesError` for a pool that is not there, a work tree that is no commit, and a project without a remote."""
        from flows.machines import stage

        self.name, self.commit = name, commit_here()
        _need_remote()
        with get_client(sync_client=True) as client:
            try:
                kind = client.read_work_pool(name).type
            except ObjectNotFound:
                raise ConesError(
                    f"there is no work pool `{name}`; `prefect work-pool create {name} --type process` makes it, and "
                    f"`prefect worker start --pool {name}` in a clone of its own works for it"
                ) from None
            self._start = START_SILENCE if kind == "process" else PULL_SILENCE
            client.create_deployment(
                client.create_flow(stage), name=name, work_pool_name=name, entrypoint="flows/machines.py:stage",
                pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": "."}}],
                job_variables={"working_dir": ".", "command": "python -m prefect.engine"},
                parameter_openapi_schema=parameter_schema(stage).model_dump(),
                description="Stages of dvc.yaml that `python -m flows.pipeline --on` sends here.",
            )  # fmt: skip

    def workers(self) -> int:
        """How many are online."""
        with get_client(sync_client=True) as client:
            return sum(w.status == WorkerStatus.ONLINE for w in client.read_workers_for_work_pool(self.name))

    def run(self, asked: dict[str, Any], ending: Callable[[], bool], log: Callable[[str], None]) -> dict[str, Any]:
        """Have the stages made that `flows.travel.offer` told of; what became of each.

        Whoever asks for the same at the same time waits for the same run. `Lost` if its worker is gone.
        """
        parameters = {"stages": asked["stages"], "lines": asked["lock"], "commit": self.commit}
        attempt = 0
        while True:
            key = content_hash([parameters, attempt])
            run = run_deployment(
                f"stage/{self.name}", parameters=parameters, timeout=0, idempotency_key=key,
                flow_run_name=", ".join(asked["stages"]),
            )  # fmt: skip
            if run.state is None or not run.state.is_final():
                break
            attempt += 1  # one of before
        log(f"sent to `{self.name}` as flow run {run.id}")
        mine = f"{SENDER}{secrets.token_hex(8)}"
        try:
            return self._outcomes(self._follow(run.id, mine, ending, log), asked["stages"])
        except BaseException:
            _leave(run.id, mine)
            raise

    def _follow(self, run: UUID, mine: str, ending: Callable[[], bool], log: Callable[[str], None]) -> FlowRun:
        """The flow run when it is over; until then it has the label `mine`."""
        seen, since, told = None, time.monotonic(), ""
        answered = since
        with get_client(sync_client=True) as client:
            while True:
                if ending():
                    raise StageFailed("the flow is ending", may_pass=False)
                try:
                    found = client.read_flow_run(run)
                except (httpx.HTTPError, PrefectHTTPStatusError) as error:  # the server is away, and comes back
                    seen, since = None, time.monotonic()
                    if since - answered > SERVER_SILENCE:
                        raise StageFailed(
                            f"Prefect's server has not answered for {SERVER_SILENCE / 60:.0f} minutes ({error}); what "
                            "a worker makes is pushed all the same: run the flow again when the server is there",
                            may_pass=False,
                        ) from None
                    time.sleep(LOOK_SECONDS)
                    continue
                answered = time.monotonic()
                if found.state is None or found.state.is_final():
                    return found
                if not found.labels.get(mine):  # yet, or any more: of two labels set at once the server may keep one
                    with suppress(httpx.HTTPError, PrefectHTTPStatusError):
                        client.update_flow_run_labels(run, {mine: True})
                sign = (found.state.type, found.labels.get(BEAT))
                if sign != seen:
                    seen, since = sign, time.monotonic()
                elif time.monotonic() - since > (silence := self._silence(found)):
                    where = found.labels.get(MACHINE, "a machine that it had not named")
                    message = f"no word for {silence:.0f} seconds from the worker on {where}"
                    _crash(run, message)
                    raise Lost(f"{message}: it, or its machine, is gone")
                if found.labels.get(MACHINE, told) != told:
                    told = str(found.labels[MACHINE])
                    log(f"a worker on {told} has it")
                time.sleep(LOOK_SECONDS)

    def _silence(self, run: FlowRun) -> float:
        """How long a flow run may say nothing: for ever while no worker has taken it."""
        if run.state is None or run.state.is_scheduled():
            return float("inf")
        return SILENCE if run.state.is_running() else self._start

    def _outcomes(self, run: FlowRun, stages: Sequence[str]) -> dict[str, Any]:
        message = (run.state.message if run.state else None) or ""
        try:
            outcomes = json.loads(message)
            return {name: dict(outcomes[name]) for name in stages}
        except (ValueError, KeyError, TypeError):
            raise Lost(f"flow run {run.id} on `{self.name}` ended {run.state and run.state.name}: {message}") from None


class Errand:
    """Stages that one worker makes in turn, while a task here follows each; as `Batch`, on another machine."""

    def __init__(self, names: Sequence[str], on: Sequence[int], programs: Programs, pool: Pool) -> None:
        self.on, self.left = on, list(names)
        self._names, self._programs, self._pool = list(names), programs, pool
        self._outcomes: dict[str, Any] | None = None

    def run(self, name: str, log: Callable[[str], None]) -> None:
        """Have a stage made, with those after it if this is the first; `StageFailed` or `Lost`."""
        if self._outcomes is None:
            self._outcomes = self._send(self._names[self._names.index(name) :], log)
        outcome = self._outcomes.get(name, {})
        if "error" in outcome:
            self._outcomes = None  # the next attempt, or the next stage, sends the rest
            raise StageFailed(redacted(str(outcome["error"])), bool(outcome.get("may_pass")))

    def seconds(self, name: str, otherwise: float) -> float:
        """What a stage took on the worker."""
        return float((self._outcomes or {}).get(name, {}).get("seconds", otherwise))

    def _send(self, names: list[str], log: Callable[[str], None]) -> dict[str, Any]:
        file = ERRANDS / f"{secrets.token_hex(8)}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._programs.run("the offer", [*TRAVEL, "offer", str(file), *names], {}, log)
            asked = read_json(file)
        finally:
            file.unlink(missing_ok=True)
        if not asked["stages"]:
            return {}
        outcomes = self._pool.run(asked, self._programs.ending, log)
        made = [name for name, of in outcomes.items() if "error" not in of]
        if made:
            self._programs.run("the fetch", [*TRAVEL, "receive", *made], {}, log)
        return outcomes


def _need_remote() -> None:
    from dvc.repo import Repo

    with Repo() as repo:
        if not repo.config["core"].get("remote"):
            raise ConesError(
                "results travel by a DVC remote, and this project has none: `dvc remote add --default NAME "
                "ssh://machine/folder`, or a folder that all machines see, and commit .dvc/config"
            )


def _leave(run: UUID, mine: str) -> None:
    """Wait for a run no more, and cancel it if nobody else does."""
    with suppress(Exception), get_client(sync_client=True) as client:  # whoever sent it has ended, and says why
        client.update_flow_run_labels(run, {mine: False})
        labels = client.read_flow_run(run).labels
        if not any(waits for name, waits in labels.items() if name.startswith(SENDER)):
            client.set_flow_run_state(run, Cancelling(message="the flows that asked for it ended"))


def _crash(run: UUID, message: str) -> None:
    with suppress(Exception), get_client(sync_client=True) as client:  # whoever sent it tells the same
        client.set_flow_run_state(run, Crashed(message=message), force=True)
