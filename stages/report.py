"""Bring the results of all concepts together: `results/summary.json`, and `results/report.html` for people."""

from cones.common.errors import ConesError
from cones.common.files import fresh_file, write_json
from cones.common.layout import RESULTS
from cones.common.planned import read_plan
from cones.common.process import run_stage
from cones.finetuning.settings import Finetune
from cones.methods.searched import Method
from cones.results.page import report_page
from cones.results.summary import RowSettings, summarise
from cones.study.settings import Draws
from cones.tasks.settings import ConceptSettings


def main() -> None:
    planned, rows = read_plan("report"), {}
    for row, told in planned.settings["rows"].items():
        tuned = planned.part(f"rows.{row}.finetune", Finetune) if "finetune" in told else None
        concept = planned.part(f"concepts.{told['concept']}", ConceptSettings)
        rows[row] = RowSettings(told["concept"], concept, planned.part(f"rows.{row}.method", Method), tuned)
    summary = summarise(rows)
    missing = sorted(set(rows) - {line["row"] for line in summary})
    if missing:
        raise ConesError(f"{', '.join(missing)} is not searched and evaluated yet; `dvc repro` does both")
    studies = {name: planned.part(f"studies.{name}", Draws) for name in planned.settings["studies"]}
    methods = {settings.method.name: settings.method.summary() for settings in rows.values()}
    page = report_page(summary, methods, studies)
    write_json(RESULTS / "summary.json", summary)
    with fresh_file(RESULTS / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(f"{len(summary)} rows in {RESULTS / 'summary.json'} and {RESULTS / 'report.html'}")


if __name__ == "__main__":
    run_stage(main)
