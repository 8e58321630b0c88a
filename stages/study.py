"""Run a study: search each of its cells on pictures that are encoded once, test it, and sum up over seeds."""

from cones.backbones.settings import BackboneConfig
from cones.common.console import progress_bar
from cones.common.files import file_hash
from cones.common.layout import CACHE, PREPARED, STUDIES, stage_lock
from cones.common.planned import read_plan
from cones.common.process import STAGE_WAIT, lock, run_stage
from cones.methods.searched import Method
from cones.study.settings import Draws, settings_hash


def main(name: str) -> None:
    planned = read_plan("study", name)
    draws, config = planned.part("draws", Draws), planned.part("backbone", BackboneConfig)

    from accelerate import Accelerator

    from cones.results.study_page import write_study_page
    from cones.study.cells import Cell, run_cells
    from cones.study.pictures import encode_study
    from cones.study.summary import write_summary

    methods = {
        label: {k: planned.part(f"methods.{label}.{k}", Method) for k in of}
        for label, of in planned.settings["methods"].items()
    }
    cells = [
        Cell(label, methods[label][str(shots)], shots, seed, planned.settings["code"][label])
        for shots in sorted(draws.shots)
        for seed in range(1, draws.seeds + 1)
        for label in methods
    ]
    accelerator, out = Accelerator(), STUDIES / name
    with lock(stage_lock("study", name), f"the study `{name}`", STAGE_WAIT):
        with progress_bar(f"encoding for {name}", 1) as advance:
            pictures = encode_study(draws, config, PREPARED / draws.data, CACHE, accelerator.device, lambda n: None)
            advance()
        with progress_bar(f"study {name}", len(cells)) as advance:
            lines = run_cells(cells, pictures, accelerator, out / "results.csv", advance)
        hashes = {"base_sha256": pictures.every.base.sha256, "results_sha256": file_hash(out / "results.csv"),
                  "settings_sha256": settings_hash(draws, methods)}  # fmt: skip
        summary = write_summary(out, lines, draws, hashes)
        write_study_page(out, summary)
    most = str(max(draws.shots))
    for label, of in summary["methods"].items():
        measured = [f"{name} {in_percent(of[most][name])}" for name in ("accuracy", *draws.measured)]
        print(f"{label} at {most} shots: {', '.join(measured)} %")


def in_percent(spread: dict[str, float]) -> str:
    """Mean and spread, in per cent."""
    return f"{100 * spread['mean']:.1f} ± {100 * spread['std']:.1f}"


if __name__ == "__main__":
    run_stage(main)
