"""Search one row: optimise its method on the cached features, write the Concept, its curves, metrics and cost."""

import shutil

from cones.config import Searched, load_params
from cones.console import progress_bar, row_progress
from cones.files import fresh_folder
from cones.layout import CHECKPOINTS, ENCODED, SEARCHED
from cones.process import lock, run_stage
from cones.ranking import headline


def main(row: str) -> None:
    params = load_params()
    run = params.entry("runs", row)

    from accelerate import Accelerator

    from cones.checkpoint import checkpoint_path
    from cones.encoded import Encoded
    from cones.rows import search_row, write_row

    encoded = Encoded.open(ENCODED / run.concept)
    head = headline(encoded.about["task"])
    checkpoint = checkpoint_path(run.model_dump(), encoded.about)
    samples = checkpoint.parent / "samples"
    epochs = run.method.epochs if isinstance(run.method, Searched) else 0
    with lock(CHECKPOINTS / f"{row}.lock", f"the row `{row}`"), progress_bar(f"searching {row}", epochs) as advance:
        show = row_progress(row, "epoch", head, advance, checkpoint.exists())
        found = search_row(row, run, encoded, Accelerator(), checkpoint, show, samples)
        with fresh_folder(SEARCHED / run.concept / row) as out:
            write_row(out, encoded.about["task"], found, samples)
        checkpoint.unlink(missing_ok=True)
        shutil.rmtree(samples, ignore_errors=True)
    print(f"{row}: val {head} {found.metrics[head]:.3f} in {found.cost['search_seconds']} s")


if __name__ == "__main__":
    run_stage(main)
