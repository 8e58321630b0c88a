"""Fine-tune one row: weights of the base model train on from it; write the Concept with them and what they cost."""

import shutil
from contextlib import suppress

from cones.common.console import progress_bar, row_progress
from cones.common.files import fresh_folder
from cones.common.layout import ENCODED, PREPARED, SEARCHED, lock_of
from cones.common.process import lock, run_stage
from cones.config.params import load_params
from cones.tasks.ranking import headline


def main(row: str) -> None:
    params = load_params()
    settings = params.entry("finetunes", row)

    from accelerate import Accelerator

    from cones.concept.file import WEIGHTS_FILE, Concept
    from cones.features.encoded import Encoded
    from cones.finetuning.detector import finetune_row, judged_as
    from cones.finetuning.dreambooth import class_pictures, dreambooth_row, prior_count
    from cones.search.checkpoint import row_checkpoint
    from cones.search.outcome import write_row

    encoded = Encoded.open(ENCODED / settings.concept)
    first = SEARCHED / settings.concept / settings.from_ / "concept.safetensors"
    start = Concept.load(first)
    checkpoint = row_checkpoint(settings, encoded.about, first)
    data = PREPARED / params.entry("concepts", settings.concept).data
    task = judged_as(settings, encoded)
    head = headline(task)
    steps, accelerator, samples = settings.steps, Accelerator(), checkpoint.parent / "samples"
    prior = None
    if task == "generation" and prior_count(settings):
        with progress_bar(f"pictures of the class word for {row}", prior_count(settings)) as advance:
            prior = class_pictures(settings, encoded, accelerator.device, advance)
    with lock(lock_of(row), f"the row `{row}`"), progress_bar(f"fine-tuning {row}", steps) as advance:
        show = row_progress(row, "step", head, advance)
        if task == "generation":
            found = dreambooth_row(row, settings, start, encoded, accelerator, prior, checkpoint, show, samples)
        else:
            found = finetune_row(row, settings, start, encoded, accelerator, data, checkpoint, show)
        with fresh_folder(SEARCHED / settings.concept / row) as out:
            write_row(out, task, found, samples)
            (out / WEIGHTS_FILE).write_bytes(found.weights)
        checkpoint.unlink(missing_ok=True)
        shutil.rmtree(samples, ignore_errors=True)
        with suppress(OSError):  # what was put aside stays
            checkpoint.parent.rmdir()
    print(f"{row}: val {head} {found.metrics[head]:.3f} in {found.cost['search_seconds']} s")


if __name__ == "__main__":
    run_stage(main)
