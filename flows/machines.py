"""What a worker on another machine does: some stages of dvc.yaml, at a commit, in the clone that it was started in."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("DO_NOT_TRACK", "1")  # read when prefect is imported

from prefect import State, flow, get_run_logger
from prefect.states import Completed, Failed
from pydantic import StringConstraints

from cones.common.errors import ConesError
from cones.common.files import write_json
from cones.common.layout import ERRANDS, FLOW_LOCK
from cones.common.process import lock
from cones.common.redaction import guard_output
from cones.common.system_errors import in_words
from cones.config.params import load_params
from flows.batches import Batch
from flows.clones import check_packages, forget, stand_at
from flows.errands import TRAVEL
from flows.graph import processes_of
from flows.processes import CommandFailed, Programs
from flows.signs import AT, GPU, Signs, beating
from flows.stages import stage_environment

guard_output()

PUSH_AGAIN = (5, 30)
"""Seconds after which a push that failed is tried again."""

StageName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./:@-]*$", max_length=300)]


@flow(name="stage", persist_result=False)
def stage(stages: list[StageName], commit: str, lines: dict[str, dict[str, Any]]) -> State:
    """Make stages that are ready, from what DVC's remote has, and push what they made.

    `lines`: what the sender's lock files say of all that these stages need. The state's message is a JSON object:
    for each stage `seconds`, or `error` and `may_pass`, whether to try again.
    """
    log, outcomes = get_run_logger().info, {}
    try:
        with beating() as at, one_errand(), Programs() as programs:
            stand_at(commit)
            check_packages()
            try:
                outcomes = make(stages, lines, programs, at, log)
            finally:
                forget()
    except (ConesError, OSError, MemoryError) as error:
        told = in_words(error)
        lost = {"error": str(told), "may_pass": getattr(told, "may_pass", False)}
        outcomes = dict.fromkeys(stages, lost) | outcomes
    state = Failed if any("error" in of for of in outcomes.values()) else Completed
    return state(message=json.dumps(outcomes))


def make(
    stages: list[str], lines: dict[str, Any], programs: Programs, at: Signs, log: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Bring stages up to date one after the other, on a GPU or as many as a row has processes; what became of each."""
    file = ERRANDS / "taken.json"
    write_json(file, {"lock": lines})
    at[AT] = "pulling"
    programs.run("pulling", [*TRAVEL, "take", str(file), *stages], {}, log)
    outcomes: dict[str, dict[str, Any]] = {}
    batch, processes = Batch(stages, (), programs), processes_of(load_params())
    at[AT] = "waiting for a GPU"
    with stage_environment(max(processes.get(name, 1) for name in stages), log) as environment:
        at[GPU] = environment.get("CUDA_VISIBLE_DEVICES", "")
        for name in stages:
            at[AT], began = name, time.monotonic()
            try:
                batch.run(name, environment, log)
                outcomes[name] = {"seconds": round(time.monotonic() - began, 2)}
            except CommandFailed as error:
                outcomes[name] = {"error": str(error), "may_pass": error.may_pass}
    made = [name for name, of in outcomes.items() if "error" not in of]
    if made:
        at[AT] = "pushing"
        push(made, programs, log)
    return outcomes


def push(made: list[str], programs: Programs, log: Callable[[str], None]) -> None:
    """Push what stages made, and try again from here: another worker, who does not have it, would make it again."""
    for seconds in (*PUSH_AGAIN, None):
        try:
            programs.run("pushing", [*TRAVEL, "give", *made], {}, log)
            return
        except CommandFailed as error:
            if seconds is None or not error.may_pass:
                raise ConesError(f"{error} ({', '.join(made)} kept by the worker in {Path.cwd()})") from None
            log(f"{error}; again in {seconds} seconds")
            time.sleep(seconds)


@contextmanager
def one_errand() -> Iterator[None]:
    """Have the clone to oneself: others of its worker wait, and a flow that was started in it is no worker."""
    own = f"the project in {Path.cwd()} (workers need clones of their own)"
    with lock(ERRANDS / "one.lock", own, wait=float("inf")), lock(FLOW_LOCK, own):
        yield
