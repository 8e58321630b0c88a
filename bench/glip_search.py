"""What the cache and the dropped text encoder save in detection: seconds of a step and to the best validation AP.

    python bench/glip_search.py        writes bench/results/glip_search.json

All run the same loop on the same pictures in one process, turn about. Without the cache a step reads its pictures,
fits them to the model and runs the image encoder, as the public recipes do; full fine-tuning has no other way. The
floor is the frozen head alone: forward, loss and backward to the embeddings of a batch that is already in memory.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from common import WORK, write_results
from torch import nn

from cones.backbones.glip.settings import GlipModel
from cones.config.params import parse_finetune, parse_method
from cones.config.tables import RunConfig
from cones.data.prepared import Split
from cones.features.encoded import Encoded
from cones.features.live import LivePictures
from cones.finetuning.grounding import finetune_row
from cones.finetuning.steps import Steps
from cones.interfaces.pictures import Features
from cones.interfaces.protocols import text_of
from cones.interfaces.texts import Prompts, TextEmbeds
from cones.methods.cones.module import Cones
from cones.methods.context import ContextTokens
from cones.methods.language_prompt.module import LanguagePrompt
from cones.readers.prepare import prepare
from cones.readers.world import SceneData
from cones.search.checkpoint import Progress
from cones.search.epochs import Epochs
from cones.search.outcome import peak_memory_mb
from cones.search.row import search_row
from cones.search.trained import Trained
from cones.tasks.detection.settings import DetectionConcept
from cones.tasks.encode import draw, encode_concept

ROUNDS, STEPS, BATCH = 5, 8, 16
SEARCHES = {
    "prompt_tuning": {"name": "prompt_tuning", "class_specific": True, "lr": 0.05},
    "language_prompt": {"name": "language_prompt", "lr": 0.1},
    "cones": {"name": "cones", "lr": 0.1},
}
SCHEDULE = {"epochs": 60, "batch_size": BATCH, "validate_every": 5, "patience": None}
FULL = {"concept": "bench", "from": "bench", "kind": "full", "steps": 80, "validate_every": 16, "lr": 5e-4}


class EncodedTable(nn.Module):
    """GLIP's language prompt as published: the text encoder runs at every step, the table is added to its output."""

    def __init__(self, backbone: Any, text: TextEmbeds) -> None:
        super().__init__()
        self.backbone, self.inner = [backbone], LanguagePrompt(text)  # in a list, so that it is no part of the method

    def forward(self, names: Sequence[str], features: Any = None, generator: Any = None) -> Prompts:
        found = self.backbone[0].embed_text(names)
        return Prompts(text_embeds=TextEmbeds(found.embeds + self.inner.table, found.mask, found.owner))


def encoded_concept(work: Path, train: int, shots: int | None) -> tuple[Encoded, list[int], float]:
    """Novel scenes through the built-in GLIP: the features, where their pictures stand, seconds."""
    data = SceneData(kind="scenes", vocabulary="novel", train=train, val=60, test=10)
    prepare(data, work / "prepared")
    concept = DetectionConcept(task="segmentation", backbone="glip-tiny", data="scenes", shots=shots, val_shots=10)
    drawn = draw(concept, work / "prepared")
    began = time.perf_counter()
    backbone = GlipModel(kind="glip", source="models/backbones/glip-tiny")
    encoded = encode_concept("bench", concept, backbone, drawn, work / "encoded")
    return encoded, drawn.shown, time.perf_counter() - began


def steps(encoded: Encoded, rows: list[int], work: Path) -> dict[str, Callable[[], Any]]:
    """Each contender's epoch of `STEPS` steps."""
    accelerator, names = Accelerator(), encoded.about["names"]
    backbone: Any = encoded.backbone()
    canvas = encoded.about["canvas"]
    live = LivePictures(encoded.train, Split.open(work / "prepared/train"), rows, backbone, (canvas[0], canvas[1]))

    def epoch(method: nn.Module, pictures: Any) -> Callable[[], Any]:
        return epoch_of(method, pictures, backbone, names, accelerator)

    context = torch.randn(len(names), 4, backbone.sites["text_tokens"].width) * 0.02
    return {
        "full": full_steps(encoded, rows, work, accelerator),
        "prompt_tuning": epoch(ContextTokens(context), live),
        "prompt_tuning_cached": epoch(ContextTokens(context), encoded.train),
        "language_prompt": epoch(EncodedTable(backbone, encoded.text), live),
        "language_prompt_cached": epoch(LanguagePrompt(encoded.text), encoded.train),
        "cones": epoch(Cones(encoded.text), live),
        "cones_cached": epoch(Cones(encoded.text), encoded.train),
        "floor": floor(encoded, backbone, names),
    }


def epoch_of(
    method: nn.Module, pictures: Any, backbone: Any, names: list[str], accelerator: Accelerator
) -> Callable[[], Any]:
    """An epoch of a method on pictures, which the search loop makes."""
    settings = parse_method({"name": "cones", **SCHEDULE})
    work = Epochs(
        method, backbone, names, pictures, pictures, settings, 0, accelerator, "detection", lambda epoch: None
    )
    work.begin(Progress())
    return lambda: list(work.steps(1))


def full_steps(encoded: Encoded, rows: list[int], work: Path, accelerator: Accelerator) -> Callable[[], None]:
    """Steps on every weight but the text encoder's, in a model of their own."""
    backbone: Any = encoded.backbone()
    split, canvas = Split.open(work / "prepared/train"), encoded.about["canvas"]
    live = LivePictures(encoded.train, split, rows, backbone, (canvas[0], canvas[1]))
    method, settings = Cones(encoded.text), parse_finetune(FULL)
    weights, _ = settings.what_trains(backbone, encoded)
    trained = Trained(weights, method.embeds, settings.validate_every)
    objective = backbone.objective(settings)

    def loss_of(features: Features, generator: torch.Generator) -> torch.Tensor:
        return objective(features, text_of(method, backbone, encoded.about["names"]), generator)

    work = Steps(trained, loss_of, dict, live, settings, 0, accelerator, lambda step: None)

    def run() -> None:
        for step in range(STEPS):
            list(work.steps(step))

    return run


def floor(encoded: Encoded, backbone: Any, names: list[str]) -> Callable[[], None]:
    """Forward, loss and backward of the frozen head to the embeddings, on batches in memory."""
    method = Cones(encoded.text)
    batches = [encoded.train.batch(torch.arange(i * BATCH, (i + 1) * BATCH)) for i in range(STEPS)]

    def run() -> None:
        for batch in batches:
            backbone.objective()(batch, text_of(method, backbone, names)).backward()
            method.embeds.grad = None

    return run


def seconds_of(contenders: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds a step of each contender in each round, after one that warms up."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(ROUNDS + 1):
        for name, run in contenders.items():
            began = time.perf_counter()
            run()
            if turn:
                found[name].append((time.perf_counter() - began) / STEPS)
        print(f"round {turn}", flush=True)
    return found


def main() -> None:
    encoded, rows, _ = encoded_concept(WORK / "glip-steps", BATCH * STEPS, None)
    each = seconds_of(steps(encoded, rows, WORK / "glip-steps"))
    step = {name: round(median(values), 4) for name, values in each.items()}

    work = WORK / "glip-ten"
    encoded, _, _ = encoded_concept(work, 200, 10)
    accelerator, best = Accelerator(), {}
    for name, settings in SEARCHES.items():
        row = search_row(
            "bench", RunConfig(concept="bench", method=parse_method(settings | SCHEDULE)), encoded, accelerator
        )
        best[name] = {"steps": row.result.steps_to_best, "val_mask_ap": row.metrics["mask_ap"]}
        print(name, best[name], flush=True)
    named = search_row(
        "bench", RunConfig(concept="bench", method=parse_method({"name": "zero_shot"})), encoded, accelerator
    )
    full = finetune_row("bench", parse_finetune(FULL), named.concept, encoded, accelerator, work / "prepared")
    best["full"] = {"steps": full.result.steps_to_best, "val_mask_ap": full.metrics["mask_ap"]}
    ratios = [a / b for a, b in zip(each["prompt_tuning"], each["cones_cached"])]
    results = {
        "seconds_per_step": step,
        "step_ratio_prompt_tuning_over_cones": round(median(ratios), 2),
        "ratios": [round(r, 2) for r in ratios],
        "floor_ratio": round(median(a / b for a, b in zip(each["cones_cached"], each["floor"])), 3),
        "to_best_validation_ap": {
            name: best[name.removesuffix("_cached")]
            | {"seconds": round(best[name.removesuffix("_cached")]["steps"] * step[name], 2)}
            for name in step
            if name != "floor"
        },
        "by_pictures": {},
        "peak_memory_mb": peak_memory_mb(),
    }
    for count in (100, 300, 1000):
        grown, _, encoding = encoded_concept(WORK / f"glip-{count}", count, None)
        run = epoch_of(Cones(grown.text), grown.train, grown.backbone(), grown.about["names"], accelerator)
        run()
        began = time.perf_counter()
        run()
        size = sum(f.stat().st_size for f in (grown.folder / "train").glob("p*.npy"))
        results["by_pictures"][count] = {
            "encode_seconds": round(encoding, 2),
            "epoch_seconds": round(time.perf_counter() - began, 2),
            "cache_kb_a_picture_and_view": round(size / count / grown.train.views / 1024, 1),
        }
    write_results("glip_search", results)


if __name__ == "__main__":
    main()
