"""The results as a Prefect artefact: a table of the rows, with links to the report and the registry."""

import os
from collections.abc import Iterable
from pathlib import Path

from prefect.artifacts import create_table_artifact

from cones.config import Params
from cones.layout import RESULTS
from cones.redaction import address
from cones.results import summarise


def publish_results(params: Params, concepts: Iterable[str] | None = None) -> None:
    """Put the finished rows, of some concepts or of all, beside the flow run."""
    summary = summarise(params, concepts)
    if not summary:
        return
    rows = [
        {
            "concept": r["concept"],
            "row": r["row"],
            "method": r["method"],
            **{f"{split} {name}": round(r[split][name], 4) for split in ("val", "test") for name in r[split]},
            "search seconds": r["cost"]["search_seconds"],
            "trained parameters": r["cost"]["trained_parameters"],
        }
        for r in summary
    ]
    create_table_artifact(rows, key="results", description=_links({r["concept"] for r in rows}))


def _links(concepts: set[str]) -> str:
    report = (RESULTS / "report.html").resolve()
    lines = [f"Report: [{report}]({report.as_uri()}), on the machine that ran the flow."] if report.exists() else []
    server = address(os.environ.get("MLFLOW_TRACKING_URI", ""))
    for concept in sorted(concepts):
        page = f"[{concept}]({server.rstrip('/')}/#/models/{concept})" if server.startswith("http") else f"`{concept}`"
        lines.append(f"Registry: {page}, loaded with `models:/{concept}@champion`.")
    if not server:
        lines.append(f"The registry is `sqlite:///{Path('mlflow.db').resolve()}`.")
    return "\n\n".join(lines)
