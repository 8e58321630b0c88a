"""The results as a Prefect artefact: a table of the rows, with links to the report and the registry."""

import os
from pathlib import Path

from prefect.artifacts import create_table_artifact

from cones.files import read_json
from cones.layout import RESULTS


def publish_results() -> None:
    """Put `results/summary.json` beside the flow run, if it has been made."""
    path = RESULTS / "summary.json"
    if not path.exists():
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
        for r in read_json(path)
    ]
    create_table_artifact(rows, key="results", description=_links({r["concept"] for r in rows}))


def _links(concepts: set[str]) -> str:
    report = (RESULTS / "report.html").resolve()
    lines = [f"Report: [{report}]({report.as_uri()}), on the machine that ran the flow."]
    server = os.environ.get("MLFLOW_TRACKING_URI", "")
    for concept in sorted(concepts):
        page = f"[{concept}]({server.rstrip('/')}/#/models/{concept})" if server.startswith("http") else f"`{concept}`"
        lines.append(f"Registry: {page}, loaded with `models:/{concept}@champion`.")
    if not server:
        lines.append(f"The registry is `sqlite:///{Path('mlflow.db').resolve()}`.")
    return "\n\n".join(lines)
