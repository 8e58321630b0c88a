"""What each few-shot method costs: seconds an epoch, seconds to the best validation, trained numbers, memory.

    python bench/few_shot_cost.py        writes bench/results/few_shot_cost.json, on a GPU few_shot_cost_gpu.json

At `clip-tiny` for 10, 100 and 1,000 classes, and at ViT-B/16 width with random weights for 10, of 16 random pictures:
time and memory do not depend on what they show. Each is a process of its own, with `LIMIT` seconds and `MEMORY` bytes;
of what needs more that is said. Steps are timed until there are `STEPS`, or two that took `ENOUGH` seconds. Then each
method's whole search on the glyphs, the encoder-free ones together over five numbers of shots and three seeds, and
`lr: auto` of ConES over one rate, turn about.

On a GPU it is ViT-B/16 alone, for all three numbers of classes, all in one process, memory that of the GPU; the linear
probe, which scikit-learn fits on the CPU, is left out.
"""

import gc
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from clip_search import vit_b16
from common import WORK, kept, key_of, now, write_results
from torch import Tensor
from torch.nn import functional as F

from cones.backbones.clip.clip import Clip
from cones.backbones.clip.settings import ClipModel
from cones.config.params import parse_method
from cones.config.tables import RunConfig
from cones.features.encoded import Encoded
from cones.features.store import FeatureStore, write_features
from cones.interfaces.pictures import WHOLE, Features, Share
from cones.interfaces.protocols import prompts_of
from cones.interfaces.texts import TextEmbeds
from cones.methods.fitted import Fits
from cones.methods.searched import Searched
from cones.methods.start import ImageStart, Start, class_means
from cones.readers.prepare import prepare
from cones.readers.world import WorldData
from cones.search.epochs import Epochs
from cones.search.outcome import peak_memory_mb
from cones.search.row import search_row
from cones.tasks.classification.live import live_pictures
from cones.tasks.classification.settings import ClassificationConcept
from cones.tasks.encode import draw, encode_concept

FREE = ("taskres", "lp_plus_plus", "tip_adapter", "tip_adapter_f", "linear_probe")
METHODS = ("coop", "cocoop", "vpt_shallow", "vpt_deep", "upt", "cones", *FREE)
CLASSES, SHOTS, STEPS, ROUNDS = (10, 100, 1000), 16, {"cpu": 3, "cuda": 20}, 5
LIMIT, ENOUGH, MEMORY = 120, 20, 16 * 2**30
TINY = "models/backbones/clip-tiny"


@dataclass(frozen=True)
class RandomPictures:
    """Pictures of noise, encoded with a method's visual tokens as they are asked for."""

    store: FeatureStore
    backbone: Clip
    side: int
    visual_tokens: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def __len__(self) -> int:
        return len(self.store)

    def batch(self, indices: Tensor, views: Tensor | None = None) -> Features:
        pixels = torch.randn(len(indices), 3, self.side, self.side, device=self.backbone.device)
        tensors = dict(self.backbone.encode(pixels, self.visual_tokens()))
        return Features(tensors, torch.zeros_like(indices), self.store.labels[indices])

    def batches(self, size: int, share: Share = WHOLE) -> Iterator[Features]:
        with torch.no_grad():
            yield from (self.batch(rows) for rows, _ in share.batches(len(self), min(size, 64)))


def random_store(classes: int, width: int) -> FeatureStore:
    """Features of unit length of 16 pictures of each class."""
    torch.manual_seed(0)
    labels = [i % classes for i in range(SHOTS * classes)]
    features = F.normalize(torch.randn(len(labels), width), dim=-1)
    ids = [str(i) for i in range(len(labels))]
    place = WORK / f"random-{classes}-{width}"
    return write_features(place, ids, labels, 1, lambda rows: lambda view: {"image": features[rows.start : rows.stop]})


@cache
def opened(source: str, device: torch.device) -> Clip:
    return Clip(Path(source), device, logit_scale=100.0)


def measure(source: str, classes: int, name: str) -> dict[str, Any]:
    """Seconds of a step, of an epoch (times their number) and of a fit at 16 shots, trained numbers and memory."""
    accelerator = Accelerator()
    device = accelerator.device
    backbone, settings = opened(source, device), parse_method({"name": name})
    width, names = backbone.sites["text_embeds"].width, [f"thing {i}" for i in range(classes)]
    store, text = (
        random_store(classes, width),
        TextEmbeds.one_per_class(F.normalize(torch.randn(classes, width), dim=-1)),
    )
    plain = store.batch(torch.arange(len(store))).tensors["image"]
    images = ImageStart(class_means(plain, store.labels, classes), lambda embeds: 0.0, store)
    method = settings.build(backbone, Start(names, text, 0, ("a photo of a {}.",), lambda: images)).to(device)
    found: dict[str, Any] = {"trained_parameters": sum(p.numel() for p in method.parameters())}
    pictures: Any = store
    if settings.enters_image_encoder:
        side = backbone.processor.crop_size["height"]
        pictures = RandomPictures(store, backbone, side, lambda: prompts_of(method, backbone, names).visual_tokens)
    if isinstance(settings, Searched):
        work = Epochs(method, backbone, names, pictures, pictures, settings, 0, accelerator, "classification")
        seconds, stepping, steps = [], work.steps(0), 0
        most = min(STEPS[device.type] + 1, work.steps_a_unit)
        while steps < most and not (steps > 1 and sum(seconds) > ENOUGH):
            began = now(device)
            next(stepping, None)
            seconds.append(now(device) - began)
            steps += 1
        step = median(seconds[1:] or seconds)
        found |= {"batch": settings.batch_size, "step_seconds": round(step, 5),
                  "epoch_seconds": round(step * work.steps_a_unit, 3), "published_epochs": settings.epochs}  # fmt: skip
    if isinstance(method, Fits):
        began = now(device)
        method.fit(store, store)
        found["fit_seconds"] = round(now(device) - began, 3)
    return found | {"peak_memory_mb": peak_memory_mb()}


def alone(source: str, classes: int, name: str) -> dict[str, Any]:
    """`measure` in a process of its own; what it ended with where it needed more than it was given."""
    command = [sys.executable, __file__, "measure", source, str(classes), name]
    bound = partial(resource.setrlimit, resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False, preexec_fn=bound)
    except subprocess.TimeoutExpired:
        return {"more_than_seconds": LIMIT}
    if done.returncode:
        if "can't allocate memory" in done.stderr or "MemoryError" in done.stderr or done.returncode < 0:
            return {"more_than_bytes": MEMORY}
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def on_a_gpu(source: str, classes: int, name: str) -> dict[str, Any]:
    """`measure` in this process; the memory of the GPU where it needs more."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        return measure(source, classes, name)
    except torch.OutOfMemoryError:
        return {"more_than_bytes": torch.cuda.get_device_properties(0).total_memory}


def glyphs(shots: int, seed: int) -> tuple[Encoded, Any]:
    """The glyphs at a number of shots, and what makes their pictures live."""
    place = WORK / "few-shot-cost"
    prepare(WorldData(kind="world", vocabulary="novel", test=1), place / "prepared")
    concept = ClassificationConcept(task="classification", backbone="b", data="glyphs", shots=shots, views=8, seed=seed)
    backbone = ClipModel(kind="clip", source=TINY)
    drawn = draw(concept, place / "prepared")
    encoded = encode_concept("bench", concept, backbone, drawn, place / f"encoded-{shots}-{seed}")
    return encoded, partial(live_pictures, concept, place / "prepared")


def search(encoded: Encoded, live: Any, **settings: Any) -> dict[str, float]:
    """What a search of these settings cost."""
    began = time.perf_counter()
    run = RunConfig(concept="bench", method=parse_method(settings))
    cost = search_row("bench", run, encoded, Accelerator(), live=live).cost
    best = cost["optimise_seconds"] * cost["steps_to_best"] / max(cost["steps"], 1)
    return {"seconds": round(time.perf_counter() - began, 3), "seconds_to_best": round(best, 3),
            "steps": cost["steps"], "steps_to_best": cost["steps_to_best"]}  # fmt: skip


def automatic() -> dict[str, Any]:
    """Seconds of `lr: auto` over those of one rate, turn about: ConES on the glyphs, with no end before its epochs."""
    encoded, live = glyphs(SHOTS, 1)
    given = {"name": "cones", "init": "blend"}
    search(encoded, live, **given, epochs=20)
    ratios: dict[str, list[float]] = {"to_the_end": [], "with_patience": []}
    for _ in range(ROUNDS):
        for label, more in (("to_the_end", {"patience": None}), ("with_patience", {})):
            auto, one = (search(encoded, live, **given, **more, lr=lr)["seconds"] for lr in ("auto", 3e-3))
            ratios[label].append(round(auto / one, 2))
    return {label: {"ratios": of, "median": median(of)} for label, of in ratios.items()}


def encoder_free() -> dict[str, Any]:
    """All encoder-free methods at five numbers of shots with three seeds, their features encoded before."""
    cells = [glyphs(shots, seed) for shots in (1, 2, 4, 8, 16) for seed in (1, 2, 3)]
    seconds = {name: sum(search(*cell, name=name)["seconds"] for cell in cells) for name in FREE}
    return {"seconds": {n: round(s, 2) for n, s in seconds.items()}, "together": round(sum(seconds.values()), 2)}


def gpu() -> None:
    """The costs on a GPU at ViT-B/16 width."""
    source, curves = str(vit_b16(WORK / "vit-b16-random")), {}
    for classes in CLASSES:
        for name in METHODS:
            if name == "linear_probe":
                continue
            line = on_a_gpu(source, classes, name)
            curves.setdefault(str(classes), {})[name] = line
            print(classes, name, line, flush=True)
    write_results("few_shot_cost", {"shots": SHOTS, "by_classes": {"ViT-B/16, random weights": curves}})


def main() -> None:
    place, wide = WORK / "few-shot-cost" / key_of("few_shot_cost"), str(vit_b16(WORK / "vit-b16-random"))
    curves: dict[str, Any] = {}
    for label, source in (("clip-tiny", TINY), ("ViT-B/16, random weights", wide)):
        for classes in CLASSES if source == TINY else CLASSES[:1]:
            for name in METHODS:
                path = place / f"{label[:4]}-{classes}-{name}.json"
                line = kept(path, partial(alone, source, classes, name))
                curves.setdefault(label, {}).setdefault(str(classes), {})[name] = line
                print(label, classes, name, line, flush=True)
    whole = {name: kept(place / f"whole-{name}.json", partial(whole_search, name)) for name in METHODS}
    write_results("few_shot_cost", {
        "shots": SHOTS, "limit_seconds": LIMIT, "limit_bytes": MEMORY, "by_classes": curves, "glyphs_16_shots": whole,
        "encoder_free_study": kept(place / "free.json", encoder_free),
        "lr_auto_over_one_rate": kept(place / "auto.json", automatic),
    })  # fmt: skip


def whole_search(name: str) -> dict[str, float]:
    return search(*glyphs(SHOTS, 1), name=name)


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]), sys.argv[4])))
    else:
        gpu() if torch.cuda.is_available() else main()
