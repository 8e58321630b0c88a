"""Fine-tune one row: weights of the base model train on from it; write the Concept with them and what they cost."""

import shutil
from contextlib import nullcontext, suppress
from functools import partial
from importlib import import_module
from typing import Any

from cones.common.console import progress_bar, row_progress
from cones.common.files import fresh_folder
from cones.common.launch import ran_in_processes
from cones.common.layout import ENCODED, PREPARED, SEARCHED, lock_of
from cones.common.planned import read_plan
from cones.common.process import lock, run_stage
from cones.finetuning.settings import Finetune
from cones.tasks.parts import part_of
from cones.tasks.ranking import headline
from cones.tasks.settings import ConceptSettings


def main(row: str) -> None:
    planned = read_plan("finetune", row)
    settings = planned.part("finetune", Finetune)
    if ran_in_processes(getattr(settings, "processes", 1)):
        return

    from cones.concept.file import WEIGHTS_FILE, Concept
    from cones.features.encoded import Encoded
    from cones.interfaces.processes import open_accelerator
    from cones.search.checkpoint import row_checkpoint
    from cones.search.outcome import write_row

    encoded = Encoded.open(ENCODED / settings.concept)
    first = SEARCHED / settings.concept / settings.from_ / "concept.safetensors"
    start = Concept.load(first)
    checkpoint = row_checkpoint(settings, encoded.about, first)
    data = PREPARED / planned.settings["data"]
    task = settings.judged_as(encoded.about["task"])
    head = headline(task)
    accelerator, samples = open_accelerator(), checkpoint.parent / "samples"
    how = import_module(f"cones.finetuning.{encoded.family}")
    with accelerator.main_process_first():
        made = how.prepare(row, settings, encoded, accelerator.device)
    more: dict[str, Any] = {}
    if "pictures" in planned.settings:
        concept = planned.part("pictures", ConceptSettings)
        more["live"] = partial(part_of(concept.task, "live").live_pictures, concept, data)
    alone = lock(lock_of(row), f"the row `{row}`") if accelerator.is_main_process else nullcontext()
    with alone, progress_bar(f"fine-tuning {row}", settings.steps) as advance:
        show = row_progress(row, "step", head, advance)
        tuned = how.finetune_row(
            row, settings, start, encoded, accelerator, data, checkpoint, show, samples, made, **more
        )
        accelerator.end_training()
        if not accelerator.is_main_process:
            return
        with fresh_folder(SEARCHED / settings.concept / row) as out:
            write_row(out, task, tuned, samples)
            (out / WEIGHTS_FILE).write_bytes(tuned.weights)
        checkpoint.unlink(missing_ok=True)
        shutil.rmtree(samples, ignore_errors=True)
        with suppress(OSError):  # what was put aside stays
            checkpoint.parent.rmdir()
    print(f"{row}: val {head} {tuned.metrics[head]:.3f} in {tuned.cost['search_seconds']} s")


if __name__ == "__main__":
    run_stage(main)
