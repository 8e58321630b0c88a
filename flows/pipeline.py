"""The whole pipeline, or one row of it, as Prefect flows: DVC's graph side by side, then the registry.

python -m flows.pipeline                 everything that is out of date
python -m flows.pipeline --row NAME      one row and the others of its concept, from search to look-up
"""

import argparse
import os
import secrets
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

os.environ.setdefault("DO_NOT_TRACK", "1")  # read when prefect is imported

from prefect import State, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_SERVER_API_AUTH_STRING,
    get_current_settings,
    temporary_settings,
)
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from cones.common.errors import ConesError
from cones.common.escaping import terminal_lines
from cones.common.layout import FLOW_LOCK
from cones.common.messages import nearest
from cones.common.process import cores, lock, plain_errors
from cones.common.redaction import guard_output
from cones.common.system_errors import in_words
from cones.config.params import Params, load_params
from flows.errands import Pool
from flows.gpus import gpus
from flows.graph import processes_of, stage_graph
from flows.processes import Programs
from flows.results import publish_results
from flows.signs import COMMIT, beating, publish_stages
from flows.stages import may_pass, run_stages

guard_output()  # of a worker, too, which imports this file and no entry point

MOST_ON_CPU = 4
"""Stages at once on a machine without a GPU, unless another number is asked for."""

registry_task = partial(
    task, retries=2, retry_delay_seconds=[2, 10], retry_condition_fn=may_pass, cache_policy=NO_CACHE
)


@registry_task(task_run_name="register")
def register(programs: Programs) -> None:
    """Tell MLflow about every finished row."""
    programs.run("cones register", ["cones", "register"], {}, get_run_logger().info)


@registry_task(task_run_name="look up {name}")
def look_up(name: str, programs: Programs) -> None:
    """Show the champion of a concept."""
    programs.run("cones lookup", ["cones", "lookup", name], {}, get_run_logger().info)


def run_all(targets: Iterable[str], parallel: int | None, concept: str | None = None, on: str | None = None) -> State:
    """Bring stages up to date, register what is finished, publish the results; the state the flow ends in."""
    log = get_run_logger()
    try:
        params = load_params()
        graph = stage_graph(targets, processes_of(params))
        pool = Pool(on) if on else None
        at_once = parallel or (pool.workers() if pool else len(gpus())) or min(len(cores()), MOST_ON_CPU)
        if pool:
            log.info("at commit %s, stages that want a GPU on `%s`: %d workers", pool.commit, on, pool.workers())
        log.info(
            "%d stages, at most %d at once, on %d cores and %d GPUs", len(graph), at_once, len(cores()), len(gpus())
        )
        with lock(FLOW_LOCK, f"the project in {Path.cwd()}"), beating() as signs, Programs() as programs:
            if pool:
                signs[COMMIT] = pool.commit
            publish_stages(graph)
            bad = run_stages(graph, at_once, programs, pool, signs)
            registered = register(programs, return_state=True)
            publish_results(params, [concept] if concept else None)
            found = look_up(concept, programs, return_state=True) if concept and not bad else registered
    except (ConesError, OSError, MemoryError) as error:
        return Failed(message=str(in_words(error)))
    mistakes = [f"{', '.join(bad)} failed or could not run, everything else is done"] if bad else []
    mistakes += [str(s.result(raise_on_failure=False)) for s in (registered, found) if not s.is_completed()]
    return Failed(message="; ".join(dict.fromkeys(mistakes))) if mistakes else Completed()


@flow(name="pipeline", task_runner=ThreadPoolTaskRunner(), persist_result=False)
def pipeline(
    parallel: Annotated[int, Field(ge=1)] | None = None, on: str | None = None, study: list[str] | None = None
) -> State:
    """Everything that is out of date, or some studies, and the registry.

    `parallel`: how many stages may run at once; left out, one a GPU, or without a GPU one a CPU core, at most four.
    `on`: the work pool whose workers make the stages that want a GPU; they are one a worker then.
    `study`: studies of params.yaml to run, in place of everything else.
    """
    try:
        transfers = load_params().transfers if study else {}
    except (ConesError, OSError) as error:
        return Failed(message=str(in_words(error)))
    kinds = {name: "transfer" if name in transfers else "study" for name in study or ()}
    return run_all([f"studies/dvc.yaml:{kind}@{name}" for name, kind in kinds.items()], parallel, on=on)


def with_row(params: Params, row: str) -> tuple[str, list[str]]:
    """The concept of a row, searched or fine-tuned, and its other rows; `ConesError` if there is no such row."""
    rows = params.rows()
    if row not in rows:
        raise ConesError(f"`{row}` is no row of params.yaml{nearest(row, rows)}")
    concept = rows[row].concept
    return concept, [name for name in params.rows(concept) if name != row]


@flow(name="row", task_runner=ThreadPoolTaskRunner(), persist_result=False)
def row(row: str, parallel: Annotated[int, Field(ge=1)] | None = None, on: str | None = None) -> State:
    """One row of params.yaml from search to look-up: what it needs, its search or fine-tuning, its concept's
    evaluation, the registry.

    All rows of a concept are evaluated together, on the same pictures, and the best of them on validation is looked up.
    So its other rows are brought up to date, too: DVC's stage `evaluate` depends on all of them. The log names them.
    """
    try:
        concept, others = with_row(load_params(), row)
    except (ConesError, OSError) as error:
        return Failed(message=str(in_words(error)))
    if others:
        get_run_logger().info("with `%s` the other rows of `%s`: %s", row, concept, ", ".join(others))
    return run_all([f"evaluate@{concept}"], parallel, concept, on)


@contextmanager
def own_server() -> Iterator[None]:
    """Where no server is set, the temporary one that Prefect starts asks for a password that only this process knows.

    It shares its database with the server that workers get their work from. A password in `.env` stands.
    """
    settings = get_current_settings()
    if settings.api.url or settings.server.api.auth_string:
        yield
        return
    password = f"flow:{secrets.token_urlsafe(32)}"
    with temporary_settings({PREFECT_API_AUTH_STRING: password, PREFECT_SERVER_API_AUTH_STRING: password}):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description=pipeline.__doc__)
    parser.add_argument("--row", help="bring one row of params.yaml, and its concept's others, to look-up")
    parser.add_argument("--parallel", type=int, help="how many stages may run at once")
    parser.add_argument("--study", action="append", help="run this study of params.yaml, and no row; may be repeated")
    parser.add_argument("--on", metavar="POOL", help="make stages that want a GPU by the workers of this work pool")
    asked = parser.parse_args()
    if asked.row and asked.study:
        parser.error("--row or --study, not both")
    run = partial(row, asked.row) if asked.row else partial(pipeline, study=asked.study)
    with plain_errors(), own_server():
        state = run(parallel=asked.parallel, on=asked.on, return_state=True)
    if not state.is_completed():
        sys.exit(f"error: {terminal_lines(state.message)}")


if __name__ == "__main__":
    main()
