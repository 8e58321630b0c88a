"""Bring the results of all concepts together: `results/summary.json`, and `results/report.html` for people."""

from cones.common.errors import ConesError
from cones.common.files import fresh_file, write_json
from cones.common.layout import RESULTS
from cones.common.process import run_stage
from cones.config.params import load_params
from cones.results.page import report_page
from cones.results.summary import summarise


def main() -> None:
    params = load_params()
    summary = summarise(params)
    missing = sorted(set(params.rows()) - {line["row"] for line in summary})
    if missing:
        raise ConesError(f"{', '.join(missing)} is not searched and evaluated yet; `dvc repro` does both")
    page = report_page(summary)
    write_json(RESULTS / "summary.json", summary)
    with fresh_file(RESULTS / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(f"{len(summary)} rows in {RESULTS / 'summary.json'} and {RESULTS / 'report.html'}")


if __name__ == "__main__":
    run_stage(main)
