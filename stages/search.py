"""Search one row: optimise its method on the cached features, write the Concept, its curves, metrics and cost."""

import shutil
from contextlib import nullcontext, suppress
from functools import partial

from cones.common.console import progress_bar, row_progress
from cones.common.files import fresh_folder
from cones.common.launch import ran_in_processes
from cones.common.layout import ENCODED, PREPARED, SEARCHED, lock_of
from cones.common.planned import read_plan
from cones.common.process import lock, run_stage
from cones.methods.searched import Method, Row, Searched
from cones.tasks.parts import part_of
from cones.tasks.ranking import headline
from cones.tasks.settings import ConceptSettings


def main(row: str) -> None:
    planned = read_plan("search", row)
    processes = planned.settings.get("processes", 1)
    run = Row(concept=planned.settings["concept"], method=planned.part("method", Method), processes=processes)
    if ran_in_processes(processes):
        return

    from cones.features.encoded import Encoded
    from cones.interfaces.processes import open_accelerator
    from cones.search.checkpoint import row_checkpoint
    from cones.search.outcome import write_row
    from cones.search.rates import RACE
    from cones.search.row import search_row

    accelerator, encoded = open_accelerator(), Encoded.open(ENCODED / run.concept)
    head = headline(encoded.about["task"])
    checkpoint = row_checkpoint(run, encoded.about)
    samples = checkpoint.parent / "samples"
    live = None
    if run.method.enters_image_encoder:
        concept = planned.part("pictures", ConceptSettings)
        live = partial(part_of(concept.task, "live").live_pictures, concept, PREPARED / concept.data)
    epochs = run.method.epochs if isinstance(run.method, Searched) else 0
    alone = lock(lock_of(row), f"the row `{row}`") if accelerator.is_main_process else nullcontext()
    with alone, progress_bar(f"searching {row}", epochs) as advance:
        show = row_progress(row, "epoch", head, advance)
        tell = partial(print, f"{row}:", flush=True)
        found = search_row(row, run, encoded, accelerator, checkpoint, show, samples, live, tell)
        accelerator.end_training()
        if not accelerator.is_main_process:
            return
        with fresh_folder(SEARCHED / run.concept / row) as out:
            write_row(out, encoded.about["task"], found, samples)
        for state in (checkpoint, checkpoint.with_name(RACE)):
            state.unlink(missing_ok=True)
        shutil.rmtree(samples, ignore_errors=True)
        with suppress(OSError):  # what was put aside stays
            checkpoint.parent.rmdir()
    print(f"{row}: val {head} {found.metrics[head]:.3f} in {found.cost['search_seconds']} s")


if __name__ == "__main__":
    run_stage(main)
