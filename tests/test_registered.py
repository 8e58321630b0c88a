"""Links to MLflow's runs: in the report that registering makes, on the server, and beside a flow run."""

import json
import re
from typing import Any
from urllib.request import urlopen

import pytest
from conftest import Project
from prefect import flow
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from test_flow import ask
from test_report import Wellformed

from cones.common.files import content_hash
from cones.config.params import load_params
from cones.registry.claims import KEY_TAG
from cones.registry.pages import pages_of, report_address, web_address
from flows.results import publish_results

ROWS = dict.fromkeys(("few-zero-shot", "few-coop", "few-cones"), "few")


@pytest.fixture(scope="module")
def registered(finished: Project, mlflow_server: str, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project registered on a server twice, with a user and password in the server's address."""
    project = finished.copy(tmp_path_factory.mktemp("registered") / "project")
    secret = mlflow_server.replace("://", "://someone:geheimnis1@")
    for _ in range(2):
        done = project.cones("register", MLFLOW_TRACKING_URI=secret)
        assert done.returncode == 0, done.stdout
        assert f"results/registered.html is the report with links to its runs on {mlflow_server}" in done.stdout
    return project


@pytest.fixture
def there(registered: Project, mlflow_server: str, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(registered.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    return registered


def test_the_report_of_the_server_has_links_and_that_of_the_stage_none(there: Project, mlflow_server: str) -> None:
    from mlflow import MlflowClient

    plain, linked = ((there.folder / f"results/{name}.html").read_text() for name in ("report", "registered"))
    links = dict(re.findall(rf'<a href="{mlflow_server}/#/runs/(\w+)"[^>]*>([\w-]+)</a>', linked))
    assert sorted(links.values()) == sorted(ROWS)
    client = MlflowClient(mlflow_server, mlflow_server)
    assert {client.get_run(run).info.run_name for run in links} == set(ROWS)
    assert re.sub(r"<a href[^>]*/#/runs/[^>]*>([\w-]+)</a>", r"\1", linked) == plain
    assert mlflow_server not in plain
    assert "geheimnis1" not in linked
    page = Wellformed()
    page.feed(linked)
    assert page.open == []
    experiment, key = client.get_experiment_by_name("reports").experiment_id, content_hash(linked)
    (run,) = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'")
    assert run.info.status == "FINISHED"
    where = f"{mlflow_server}/#/experiments/{experiment}/runs/{run.info.run_id}/artifacts/report.html"
    assert report_address() == where
    with urlopen(f"{mlflow_server}/get-artifact?path=report.html&run_uuid={run.info.run_id}") as answer:
        assert answer.read().decode() == linked


def test_links_are_of_what_is_there_now_on_the_server_that_is_set(
    there: Project, mlflow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(pages_of(ROWS)) == set(ROWS)
    concepts = there.folder / "evaluated/few/metrics.json"
    before = concepts.read_text()
    metrics = json.loads(before)
    metrics["few-coop"]["test"]["accuracy"] = 0.123
    concepts.write_text(json.dumps(metrics))
    report = there.folder / "results/report.html"
    text = report.read_text()
    try:
        assert set(pages_of(ROWS)) == set(ROWS) - {"few-coop"}
        report.write_text("another")
        assert report_address() is None
    finally:
        concepts.write_text(before)
        report.write_text(text)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert (pages_of(ROWS), report_address()) == ({}, None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert (pages_of(ROWS), report_address()) == ({}, None)


def test_a_flow_run_has_table_report_and_links(
    there: Project, mlflow_server: str, with_prefect: dict[str, str]
) -> None:
    @flow(name="publishing")
    def publishing() -> None:
        publish_results(load_params())

    settings = {name: with_prefect[name.name] for name in (PREFECT_API_URL, PREFECT_API_AUTH_STRING)}
    with temporary_settings(settings):
        publishing()
    found: dict[str, Any] = {a["key"]: a for a in ask(with_prefect, "artifacts", {"sort": "CREATED_DESC"})[:2]}
    assert {line["row"] for line in json.loads(found["results"]["data"])} == set(ROWS)
    told = found["results"]["description"]
    for row, page in pages_of(ROWS).items():
        assert f"[{row}]({page})" in told
    assert f"[few]({mlflow_server}/#/models/few)" in told
    assert f"({report_address()})" in found["report"]["data"]


@pytest.mark.parametrize(
    ("uri", "page"),
    [
        ("http://127.0.0.1:5000/", "http://127.0.0.1:5000"),
        ("https://me:geheim@mlflow.example/team/?x=1#y", "https://mlflow.example/team"),
        ("http://[::1]:5000", "http://[::1]:5000"),
        ("http://host/a b\"><script>", "http://host/a%20b%22%3E%3Cscript%3E"),
        ("sqlite:////x/mlflow.db", None),
        ("postgresql://me:geheim@host/x", None),
        ("javascript:alert(1)", None),
        ("http://host:port", None),
        ("http://", None),
        ("", None),
    ],
)  # fmt: skip
def test_only_servers_have_a_page_and_it_names_nobody(uri: str, page: str | None) -> None:
    assert web_address(uri) == page
