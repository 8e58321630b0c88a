"""CLIP-LoRA (Zanella and Ben Ayed 2024) on the pictures of a study's cells, which themselves search and do not tune."""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from figures import Accuracies

from cones.backbones.settings import BackboneConfig
from cones.common.console import progress_bar
from cones.common.files import content_hash, read_json, write_json
from cones.common.layout import CACHE, PREPARED, STUDIES
from cones.common.planned import read_plan
from cones.config.code import code_hashes
from cones.config.params import parse_finetune
from cones.finetuning.settings import Finetune
from cones.methods.zero_shot import ZeroShot
from cones.study.settings import Draws

if TYPE_CHECKING:
    from accelerate import Accelerator

    from cones.study.pictures import StudyPictures

STEPS_A_SHOT, BATCH, VALIDATIONS = 500, 32, 10
SETTINGS = {"concept": "study", "from": "zero_shot", "kind": "lora", "rank": 2, "alpha": 1.0, "dropout": 0.25,
            "lr": 2e-4, "weight_decay": 0.01, "batch_size": BATCH}  # fmt: skip
"""As published; so are the steps."""
PARTS = ("live", "measure", "row", "encode")


def accuracies(study: str, given: Namespace) -> Accuracies:
    """Test accuracies in percent by shots, one a seed; those that were measured before are taken."""
    planned = read_plan("study", study)
    draws, config = planned.part("draws", Draws), planned.part("backbone", BackboneConfig)

    from accelerate import Accelerator

    from cones.study.pictures import encode_study

    accelerator, found = Accelerator(), Accuracies()
    pictures = encode_study(draws, config, PREPARED / draws.data, CACHE, accelerator.device, lambda n: None)
    with progress_bar(f"clip_lora of {study}", len(draws.shots) * draws.seeds) as advance:
        for shots in draws.shots:
            for seed in range(1, draws.seeds + 1):
                accuracy = _cell(study, pictures, shots, seed, given.epochs, accelerator)
                found.setdefault(("clip_lora", shots), []).append(100 * accuracy)
                advance(1, f"{shots} shots, seed {seed}: {100 * accuracy:.1f} %")
    return found


def settings_for(shots: int, pictures: int, epochs: int | None) -> Finetune:
    """The published settings at a number of shots, or those of `epochs` passes over so many pictures."""
    steps = STEPS_A_SHOT * shots if epochs is None else epochs * -(-pictures // BATCH)
    return parse_finetune({**SETTINGS, "steps": steps, "validate_every": max(1, steps // VALIDATIONS)})


def _cell(
    study: str, pictures: "StudyPictures", shots: int, seed: int, epochs: int | None, accelerator: "Accelerator"
) -> float:
    """The test accuracy of one draw."""
    cell = pictures.cell(shots, seed)
    settings = settings_for(shots, len(cell.train), epochs)
    code = code_hashes(Path("stages/finetune.py"), _modules())
    key = content_hash([settings.model_dump(), seed, cell.about["split_hash"], cell.base.sha256, pictures.draws.views,
                        pictures.draws.min_crop, cell.about["names"], cell.about["templates"], code])[:16]  # fmt: skip
    kept = STUDIES / study / "clip_lora" / f"{key}.json"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        metrics = _tuned(pictures, settings, shots, seed, accelerator, kept.with_suffix(""))
        write_json(kept, {"shots": shots, "seed": seed, **metrics})
    return read_json(kept, float, at="accuracy")


def _modules() -> Iterator[str]:
    yield from ("cones.finetuning.lora", "cones.finetuning.dual_encoder", "cones.results.evaluate")
    yield from (f"cones.tasks.classification.{part}" for part in PARTS)


def _tuned(
    pictures: "StudyPictures", settings: Finetune, shots: int, seed: int, accelerator: "Accelerator", folder: Path
) -> dict[str, Any]:
    """Fine-tune from zero-shot, with a checkpoint to go on from, and test."""
    from cones.concept.file import WEIGHTS_FILE
    from cones.features.encoded import Encoded
    from cones.finetuning.dual_encoder import finetune_row
    from cones.methods.searched import Row
    from cones.results.evaluate import evaluate_rows
    from cones.search.checkpoint import row_checkpoint
    from cones.search.row import search_row
    from cones.tasks.parts import part_of

    cell = pictures.cell(shots, seed)
    encoded = Encoded(**{of.name: getattr(cell, of.name) for of in fields(Encoded)})  # opens a base model of its own
    concept = pictures.draws.concept(shots, 0)
    live = partial(part_of("classification", "live").live_pictures, concept, pictures.data)
    folder.mkdir(exist_ok=True)
    start = search_row("zero_shot", Row(concept="study", method=ZeroShot(name="zero_shot")), cell, accelerator).concept
    start.save(folder / "start.safetensors")
    checkpoint = row_checkpoint(settings, encoded.about, folder / "start.safetensors")
    found = finetune_row("clip_lora", settings, start, encoded, accelerator, pictures.data, checkpoint, live=live)
    checkpoint.unlink(missing_ok=True)
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "concept.safetensors"
        found.concept.save(path)
        path.with_name(WEIGHTS_FILE).write_bytes(found.weights)
        test = evaluate_rows({"clip_lora": path}, pictures.data / "test", Path(scratch), accelerator.device)
    return test["clip_lora"].metrics
