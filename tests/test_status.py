"""`cones status` against a real Prefect server: flows here, stages that workers are asked for, wrong servers."""

import io
import json
import os
import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from conftest import PARAMS, Project
from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.context import get_run_context
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Running
from rich.console import Console
from waiting import wait_for

from cones.cli import status as door
from cones.common.errors import ConesError
from flows import running as reading
from flows import status as program
from flows.gpus import some_gpus
from flows.graph import Stage
from flows.machines import stage
from flows.pipeline import pipeline
from flows.running import Run, Work, running
from flows.signs import AT, BEAT, COMMIT, GPU, MACHINE, beating, publish_stages
from flows.status import as_json, as_lines, as_table, asking

HOST, DEVICE = socket.gethostname(), f"GPU-of-the-tests-of-status-{os.getpid()}"


@pytest.fixture
def server(with_prefect: dict[str, str]) -> Iterator[SyncPrefectClient]:
    """The client of a server where nothing runs."""
    with (
        at(with_prefect["PREFECT_API_URL"], with_prefect["PREFECT_API_AUTH_STRING"]),
        get_client(sync_client=True) as client,
    ):
        end_all(client)
        yield client
        end_all(client)


def at(url: str, password: str) -> Any:
    return temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: password})


def end_all(client: SyncPrefectClient) -> None:
    for run in running(client):
        client.set_flow_run_state(UUID(run.id), Cancelled(), force=True)


def only(client: SyncPrefectClient) -> Run | None:
    runs = running(client)
    assert len(runs) < 2
    return runs[0] if runs else None


def stage_of(client: SyncPrefectClient, name: str) -> Work | None:
    run = only(client)
    return next((work for work in run.work if work.name == name), None) if run else None


def test_a_flow_here_says_which_stage_has_the_gpu_and_what_waits_for_what(
    finished: Project, tmp_path: Path, with_prefect: dict[str, str], server: SyncPrefectClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    project = finished.copy(tmp_path / "project")
    project.params(PARAMS.replace("epochs: 5", "epochs: 6"))
    with some_gpus([DEVICE], 1):
        flow = project.start(
            "flow.log", "python", "-m", "flows.pipeline", "--parallel", "1", CUDA_VISIBLE_DEVICES=DEVICE, **with_prefect
        )
        wait_for(lambda: (work := stage_of(server, "encode@few")) and work.state == "waits for a GPU", 300)
        run = only(server)
    assert run is not None
    assert (run.flow, run.state, run.machine, run.pool, run.online) == ("pipeline", "running", HOST, "", 0)
    assert (run.done, run.failed, run.stages) == (2, 0, 8)
    assert run.since is not None
    searches = tuple(f"search@few-{row}" for row in ("cones", "coop", "zero-shot"))
    assert {work.name: work.waits_for for work in run.work} == {
        "encode@few": (),
        **dict.fromkeys(searches, ("encode@few",)),
        "evaluate@few": searches,
        "report": ("evaluate@few", *searches),
    }
    assert {work.state for work in run.work[1:]} == {"waits"}
    wait_for(lambda: (work := stage_of(server, "search@few-cones")) and work.gpu == DEVICE, 300)
    work = stage_of(server, "search@few-cones")
    assert work is not None
    assert (work.state, work.machine) == ("running", HOST)
    flow.kill()
    flow.wait()
    monkeypatch.setattr(reading, "SILENCE", 0.1)
    gone = only(server)
    assert gone is not None
    assert gone.state.startswith("no word for")


def sent(client: SyncPrefectClient, pool: str, **parameters: Any) -> UUID:
    """A flow run of a worker, as `flows.errands` asks for it, but for a worker that takes it."""
    deployment = client.create_deployment(client.create_flow(stage), name=pool, work_pool_name=pool)
    return client.create_flow_run_from_deployment(deployment, parameters={"lines": {}, **parameters}).id


def test_what_a_worker_was_asked_for_says_where_it_is(server: SyncPrefectClient) -> None:
    server.create_work_pool(WorkPoolCreate(name="status-gpus", type="process"), overwrite=True)
    run = sent(server, "status-gpus", stages=["search@a", "search@b", "search@c"], commit="0" * 40)
    asked = only(server)
    assert asked is not None
    assert (asked.flow, asked.pool, asked.online, asked.state) == ("stage", "status-gpus", 0, "scheduled")
    assert {work.state for work in asked.work} == {"waits for a worker"}
    server.set_flow_run_state(run, Running(), force=True)
    server.update_flow_run_labels(run, {MACHINE: "one", GPU: "GPU-7", AT: "search@b", BEAT: 1})
    made, now, later = (stage_of(server, f"search@{name}") for name in "abc")
    assert made is not None
    assert now is not None
    assert later is not None
    assert (made.state, now.state, later.state) == ("made, not pushed yet", "running", "waits")
    assert (now.machine, now.gpu, later.gpu, later.waits_for) == ("one", "GPU-7", "", ("search@b",))
    assert now.since is not None
    head, *lines = as_lines([only(server) or asked])
    assert re.fullmatch(
        r"stage \S+, running, on one, since \d\d:\d\d \(\d+ s\), pool status-gpus, 0 workers online", head
    )
    assert re.fullmatch(r"  search@b: running, on one, GPU GPU-7, since \d\d:\d\d \(\d+ s\)", lines[1])
    assert re.fullmatch(r"  search@c: waits, on one, since \d\d:\d\d \(\d+ s\), for search@b", lines[2])
    server.update_flow_run_labels(run, {AT: "pushing"})
    assert {work.state for work in (only(server) or asked).work} == {"pushing"}


def test_what_a_flow_sent_stands_with_it(server: SyncPrefectClient) -> None:
    server.create_work_pool(WorkPoolCreate(name="status-gpus", type="process"), overwrite=True)
    needs: dict[str, tuple[str, ...]] = {"search@a": (), "search@b": (), "evaluate@x": ("search@a", "search@b")}
    found: list[Run] = []

    @task(task_run_name="search@b")
    def as_reproduce() -> None:
        wait_for(lambda: (work := stage_of(server, "search@b")) and work.machine, 300)
        found.extend(running(server))

    @flow(name="pipeline")
    def sends(on: str) -> None:
        with beating() as signs:
            signs[COMMIT] = "1" * 40
            publish_stages({name: Stage(name, waits, True) for name, waits in needs.items()})
            wait_for(lambda: server.read_flow_run(get_run_context().flow_run.id).labels.get(COMMIT), 300)
            run = sent(server, on, stages=["search@a"], commit="1" * 40)
            as_reproduce()
            server.set_flow_run_state(run, Cancelled(), force=True)

    sends("status-gpus")
    (run,) = found
    assert (run.flow, run.pool, run.online, run.stages) == ("pipeline", "status-gpus", 0, 3)
    assert [(work.name, work.state, work.waits_for) for work in run.work] == [
        ("search@a", "waits for a worker", ()),
        ("search@b", "is sent or fetched", ()),
        ("evaluate@x", "waits", ("search@a", "search@b")),
    ]


HOSTILE = "\x1b]0;owned\x07\u202e[red]&\n"


def test_words_of_the_server_are_text(server: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "geheimnis-im-namen")
    name = f"{HOSTILE} geheimnis-im-namen"
    run = server.create_flow_run(pipeline, parameters={"on": name}, name=name, state=Running())
    server.update_flow_run_labels(run.id, {MACHINE: name, BEAT: 1})
    runs = running(server)
    screen = io.StringIO()
    Console(file=screen, width=250).print(as_table(runs))
    lines = "\n".join(as_lines(runs))
    for shown in (screen.getvalue(), lines):
        assert not set(shown) & set("\x1b\x07\u202e")
        assert r"\x1b]0;owned\x07\u202e[red]&\n ***" in shown
    (told,) = json.loads(as_json(runs))
    assert told["machine"] == f"{HOSTILE} ***"
    assert "geheimnis" not in screen.getvalue() + lines + as_json(runs)


def test_the_command_tells_json_and_that_nothing_runs(
    server: SyncPrefectClient, with_prefect: dict[str, str], tmp_path: Path
) -> None:
    project = Project.at(tmp_path)
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows/status.py").write_text("raise SystemExit('what stands here was run')")
    done = project.run("cones", "status", **with_prefect)
    assert (done.returncode, done.stdout) == (0, "nothing runs\n")
    server.create_flow_run(pipeline, state=Running())
    (told,) = json.loads(project.run("cones", "status", "--json", **with_prefect).stdout)
    assert (told["flow"], told["state"]) == ("pipeline", "running")
    assert datetime.fromisoformat(told["since"]).tzinfo == UTC


@pytest.mark.parametrize(
    ("url", "told", "may_pass"),
    [
        ("", "no Prefect server is set", False),
        ("http://127.0.0.1:9/api", "does not answer", True),
        ("http://someone:geheimnis@127.0.0.1:9/api", "http://127.0.0.1:9/api does not answer", True),
        ("no address", "does not answer", True),
        ("{answering}/html", "is no Prefect server of this release", False),
        ("{answering}/list", "", False),
        ("{answering}/escape", "is no Prefect server of this release", False),
        ("{answering}/404", "answers with status 404", False),
        ("{answering}/503", "answers with status 503", True),
        ("{answering}/401", "asks for a password, and this is not it", False),
    ],
)
def test_a_server_that_cannot_be_asked_is_one_line(
    answering: str, url: str, told: str, may_pass: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "RETRIES", 0)
    with at(url.format(answering=answering), "me:geheimnis"), pytest.raises(ConesError) as caught, asking() as client:
        running(client)
    assert told in str(caught.value)
    assert "geheimnis" not in str(caught.value)
    assert caught.value.may_pass is may_pass


def test_a_wrong_password_is_one_line_with_the_next_step(with_prefect: dict[str, str]) -> None:
    with at(with_prefect["PREFECT_API_URL"], "me:geheimnis"), pytest.raises(ConesError) as caught, asking() as client:
        running(client)
    assert "`.env` of the machine that runs it, or set PREFECT_API_AUTH_STRING" in str(caught.value)
    assert "geheimnis" not in str(caught.value)


def test_an_installation_without_flows_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door.cones, "__file__", str(tmp_path / "cones/__init__.py"))
    with pytest.raises(ConesError, match=r"is installed without its flows; `cones status` wants a clone"):
        door.become_status([])
