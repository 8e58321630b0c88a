"""A program of tests: some rows, each of whose steps are shared by as many processes as there are.

    python sharing.py rows.json

`rows.json` holds `processes` and `rows`, of which each says what it works on and where its result goes.
"""

import json
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from cones.common.launch import ran_in_processes
from cones.common.process import run_stage

if TYPE_CHECKING:
    from accelerate import Accelerator

CONCEPT = {"task": "classification", "backbone": "toy", "data": "glyphs", "shots": 3, "views": 2}


@mock.patch("cones.search.epochs.Epochs.restore", new=mock.Mock())
@mock.patch("cones.search.trained.Trained.restore", new=mock.Mock())
def run_row(row: dict[str, Any], accelerator: "Accelerator") -> dict[str, Any] | None:
    """Run one; in the main process its losses, its metrics and all numbers that it trained, as the last step left them:
    the best may be the start, where random weights find nothing."""
    from safetensors.torch import load

    from cones.concept.file import Concept
    from cones.config.params import parse_finetune, parse_method
    from cones.features.encoded import Encoded
    from cones.methods.searched import Row
    from cones.search.row import search_row
    from cones.tasks.classification.live import live_pictures
    from cones.tasks.classification.settings import ClassificationConcept

    encoded, data = Encoded.open(Path(row["encoded"])), Path(row["data"])
    live = partial(live_pictures, ClassificationConcept(**CONCEPT), data)
    if "method" in row:
        method = parse_method(row["method"])
        found = search_row("row", Row(concept="few", method=method), encoded, accelerator, live=live)
        numbers = dict(found.module.state_dict())
    else:
        settings = parse_finetune({"concept": "few", "from": "a", **row["finetune"]})
        how, start = import_module(f"cones.finetuning.{encoded.family}"), Concept.load(Path(row["start"]))
        made = how.prepare("row", settings, encoded, accelerator.device)
        more = {"live": live} if encoded.family == "dual_encoder" else {}
        found = how.finetune_row("row", settings, start, encoded, accelerator, data, made=made, **more)
        numbers = load(found.weights) | {"embeds": found.concept.text.embeds}
    if not accelerator.is_main_process:
        return None
    losses = [line["train_loss"] for line in found.result.curves if "train_loss" in line]
    return {"losses": losses, "metrics": found.metrics, "numbers": numbers, "rates": found.rates}


def main(file: str) -> None:
    told = json.loads(Path(file).read_text())
    if ran_in_processes(told["processes"]):
        return
    import torch

    from cones.interfaces.processes import open_accelerator

    accelerator = open_accelerator()
    for row in told["rows"]:
        found = run_row(row, accelerator)
        if found is not None:
            torch.save(found, row["out"])
    accelerator.end_training()


if __name__ == "__main__":
    run_stage(main)
