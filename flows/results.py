"""The results as a Prefect artefact: a table of the rows, with links to the report and the registry."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from prefect.artifacts import create_table_artifact

from cones.common.escaping import printable
from cones.common.layout import RESULTS
from cones.common.redaction import address
from cones.config.params import Params
from cones.results.summary import rows_of, summarise
from flows.graph import Stage

MARKS = re.compile(r"[\\`*_{}\[\]()#!|<>~&]")
"""What Markdown gives a meaning."""


STAGES = "stages"
"""The artefact that says what a flow run is about, from its beginning."""


def publish_stages(graph: dict[str, Stage]) -> None:
    """Put the stages of a flow beside its run, with those that each waits for."""
    rows = [{"stage": s.name, "waits for": ", ".join(s.needs), "wants a GPU": s.gpu} for s in graph.values()]
    create_table_artifact(rows, key=STAGES, description="What this flow brings up to date, and what waits for what.")


def publish_results(params: Params, concepts: Iterable[str] | None = None) -> None:
    """Put the finished rows, of some concepts or of all, beside the flow run."""
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
    create_table_artifact(rows, key="results", description=_links({r["concept"] for r in summary}))


def _links(concepts: set[str]) -> str:
    report = (RESULTS / "report.html").resolve()
    link = f"[{markdown_text(report)}]({report.as_uri()})"
    lines = [f"Report: {link}, on the machine that ran the flow."] if report.exists() else []
    server = address(os.environ.get("MLFLOW_TRACKING_URI", ""))
    for concept in sorted(concepts):
        name, page = markdown_text(concept), quote(f"{server.rstrip('/')}/#/models/{concept}", safe=":/#@%?=&")
        link = f"[{name}]({page})" if server.startswith("http") else name
        lines.append(f"Registry: {link}, loaded with {markdown_text(f'models:/{concept}@champion')}.")
    if not server:
        lines.append(f"The registry is {markdown_text('sqlite:///' + str(Path('mlflow.db').resolve()))}.")
    return "\n\n".join(lines)


def markdown_text(text: object) -> str:
    """Text in Markdown, on one line, without a meaning there."""
    return MARKS.sub(lambda found: f"\\{found[0]}", printable(text))
