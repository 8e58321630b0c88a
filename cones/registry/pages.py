"""Where a browser shows what is registered on an MLflow server, and the report with links to its rows' runs.

The report stage comes before, and knows no server: its page stays as it is. What is here is beside it, made again each
time that rows are registered on a server, and nowhere else.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from cones.common.files import content_hash, file_hash, fresh_file, read_json, write_json
from cones.common.layout import RESULTS, SEARCHED
from cones.config.params import Params
from cones.registry.claims import CLAIM_TAG, KEY_TAG, claim, made_once, runs_of, taken_back
from cones.registry.client import tracking_uri
from cones.registry.run import git_commit
from cones.registry.versions import Registered, content_key
from cones.results.page import report_page
from cones.results.summary import finished_metrics, rows_of, summarise

REPORT = RESULTS / "report.html"
LINKED = RESULTS / "registered.html"
"""The report with links."""
RECORD = RESULTS / "registered.json"
"""What was registered where: `server`, `rows` with `key` and `run`, `report` with `of`, `experiment` and `run`."""
EXPERIMENT = "reports"


def web_address(uri: str) -> str | None:
    """The address of an MLflow server for a browser, without what it says of who asks; None where there is no such."""
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not host:
        return None
    where = f"[{host}]" if ":" in host else host
    where += f":{port}" if port else ""
    return urlunsplit((parts.scheme, where, quote(parts.path.rstrip("/"), safe="/%"), "", ""))


def run_page(server: str, run: str) -> str:
    """The page of a run."""
    return f"{server}/#/runs/{quote(run, safe='')}"


def publish_report(client: Any, params: Params, found: Sequence[Registered], experiment: str, server: str) -> None:
    """Make the report with links to the runs of registered rows, log it as a run of its own, if that is not done, and
    note all of it for whoever tells of it later."""
    runs = {version.row: run_page(server, version.run) for version in found if version.run}
    methods = {run.method.name: run.method.summary() for run in rows_of(params).values()}
    studies = {name: study.draws for name, study in params.every_study.items()}
    page = report_page(summarise(rows_of(params)), methods, studies, runs)
    with fresh_file(LINKED) as temporary:
        temporary.write_text(page, encoding="utf-8")
    key = content_hash(page)
    known = partial(_known, client, key, experiment)
    run, _ = made_once(client, "the report", key, experiment, known, lambda: _log(client, page, key, experiment, known))
    rows = {version.row: {"key": version.key, "run": version.run} for version in found if version.run}
    report = {"of": _report_hash(), "experiment": experiment, "run": run.info.run_id}
    write_json(RECORD, {"server": server, "rows": rows, "report": report})


def _known(client: Any, key: str, experiment: str) -> Any | None:
    return next((run for run in runs_of(client, key, experiment) if run.info.status == "FINISHED"), None)


def _log(client: Any, page: str, key: str, experiment: str, known: Any) -> Any | None:
    import mlflow

    tags = {KEY_TAG: key, CLAIM_TAG: claim(), "cones.git_commit": git_commit()}
    with mlflow.start_run(experiment_id=experiment, run_name="report", tags=tags) as run:
        if taken_back(client, run.info.run_id, key, experiment, known):
            return None
        client.log_text(run.info.run_id, page, "report.html")
        return run


def pages_of(rows: Mapping[str, str]) -> dict[str, str]:
    """The pages of rows' runs, of rows with their concepts, that are registered as they are now on the server that is
    set."""
    record = _record()
    runs = {}
    for row, concept in rows.items():
        metrics, noted = finished_metrics(concept, row), record.get("rows", {}).get(row)
        if noted and metrics is not None and noted["key"] == content_key(SEARCHED / concept / row, metrics):
            runs[row] = run_page(record["server"], noted["run"])
    return runs


def report_address() -> str | None:
    """The page that shows the report, as it is now, on the server that is set."""
    record = _record()
    if not record or record["report"]["of"] != _report_hash():
        return None
    report = {name: quote(record["report"][name], safe="") for name in ("experiment", "run")}
    return f"{record['server']}/#/experiments/{report['experiment']}/runs/{report['run']}/artifacts/report.html"


def _record() -> dict[str, Any]:
    """What was noted, if it is of the server that is set."""
    server = web_address(tracking_uri())
    if server is None or not RECORD.exists():
        return {}
    shape = dict[str, str | dict[str, str] | dict[str, dict[str, str]]]
    record: dict[str, Any] = read_json(RECORD, shape, "`cones register` makes it again")
    return record if record.get("server") == server else {}


def _report_hash() -> str:
    return file_hash(REPORT) if REPORT.exists() else ""
