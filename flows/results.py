"""The results as a Prefect artefact: a table of the rows, with links to the report and the registry."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

from prefect.artifacts import create_link_artifact, create_table_artifact

from cones.common.escaping import printable
from cones.common.layout import RESULTS
from cones.config.params import Params
from cones.registry.pages import pages_of, report_address, web_address
from cones.results.summary import rows_of, summarise

MARKS = re.compile(r"[\\`*_{}\[\]()#!|<>~&]")
"""What Markdown gives a meaning."""

REPORT_SHOWN = "As MLflow shows it. Its links to runs work in the file that is downloaded there."


def publish_results(params: Params, concepts: Iterable[str] | None = None) -> None:
    """Put the finished rows, of some concepts or of all, beside the flow run, and the report that a server shows."""
    summary = summarise(rows_of(params), concepts)
    if not summary:
        return
    rows = [
        {
            "concept": r["concept"],
            "row": r["row"],
            "method": r["method"],
            **{f"{split} {name}": round(r[split][name], 4) for split in ("val", "test") for name in r[split]},
            "search seconds": r["cost"].get("search_seconds"),
            "trained parameters": r["cost"].get("trained_parameters"),
        }
        for r in summary
    ]
    runs, report = pages_of({r["row"]: r["concept"] for r in summary}), report_address()
    create_table_artifact(rows, key="results", description=_links({r["concept"] for r in summary}, runs))
    if report is not None:
        create_link_artifact(report, "the report", key="report", description=REPORT_SHOWN)


def _links(concepts: set[str], runs: Mapping[str, str] = MappingProxyType({})) -> str:
    report = (RESULTS / "report.html").resolve()
    lines = [f"Report: {_link(report, report.as_uri())}, on the machine that ran the flow."] if report.exists() else []
    server = web_address(os.environ.get("MLFLOW_TRACKING_URI", ""))
    for concept in sorted(concepts):
        link = _link(concept, f"{server}/#/models/{concept}") if server else markdown_text(concept)
        lines.append(f"Registry: {link}, loaded with {markdown_text(f'models:/{concept}@champion')}.")
    if runs:
        lines.append(f"MLflow's runs: {', '.join(_link(row, page) for row, page in runs.items())}.")
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        lines.append(f"The registry is {markdown_text('sqlite:///' + str(Path('mlflow.db').resolve()))}.")
    return "\n\n".join(lines)


def _link(text: object, page: str) -> str:
    return f"[{markdown_text(text)}]({quote(page, safe=':/#@%?=&')})"


def markdown_text(text: object) -> str:
    """Text in Markdown, on one line, without a meaning there."""
    return MARKS.sub(lambda found: f"\\{found[0]}", printable(text))
