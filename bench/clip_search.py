"""What dropping the text encoder saves on CLIP: epochs of CoOp over ConES, a whole search over the bare feature pass.

    python bench/clip_search.py        writes bench/results/clip_search.json, on a GPU clip_search_gpu.json

Both methods run the same loop on the same cached features, turn about in one process. ViT-B/16 has random weights:
the time does not depend on them.
"""

import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from accelerate import Accelerator
from common import WORK, now, write_results

from cones.backbones.clip.clip import Clip
from cones.backbones.clip.settings import ClipModel
from cones.config.params import parse_method
from cones.config.tables import RunConfig
from cones.features.encoded import Encoded
from cones.features.store import FeatureStore, write_features
from cones.interfaces.texts import TextEmbeds
from cones.methods.cones.module import Cones
from cones.methods.context import ContextTokens
from cones.readers.prepare import prepare
from cones.readers.world import WorldData
from cones.search.epochs import Epochs
from cones.search.outcome import peak_memory_mb
from cones.search.row import search_row
from cones.tasks.classification.settings import ClassificationConcept
from cones.tasks.encode import draw, encode_concept

ROUNDS = 5


def vit_b16(folder: Path) -> Path:
    """CLIP ViT-B/16 with random weights and the built-in tokenizer, in transformers' layout."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    if not (folder / "model.safetensors").exists():
        ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
        torch.manual_seed(0)
        CLIPModel(CLIPConfig(text_config=ends, vision_config={"patch_size": 16}, **ends)).save_pretrained(folder)
        CLIPTokenizer.from_pretrained("models/backbones/clip-tiny").save_pretrained(folder)
        CLIPImageProcessorPil().save_pretrained(folder)
    return folder


def epoch_seconds(encoded: Encoded, method: dict, epochs: int) -> float:
    """The median seconds of an epoch of training and validating, as the search stage runs it."""
    ends: list[float] = []
    settings = parse_method(method | {"epochs": epochs + 1, "patience": None})
    run = RunConfig(concept="bench", method=settings)
    search_row("bench", run, encoded, Accelerator(), on_epoch=lambda line: ends.append(time.perf_counter()))
    return median(after - before for before, after in pairwise(ends))


def encode(source: str, work: Path, shots: int, views: int) -> Encoded:
    data = WorldData(kind="world", vocabulary="novel", train=16, val=16, test=1)
    prepare(data, work / "prepared")
    concept = ClassificationConcept(task="classification", backbone="bench", data="glyphs", shots=shots, views=views)
    drawn = draw(concept, work / "prepared")
    device = Accelerator().device
    return encode_concept("bench", concept, ClipModel(kind="clip", source=source), drawn, work / "encoded", device)


def tiny() -> dict:
    """The built-in CLIP on the default rows' data."""
    encoded = encode("models/backbones/clip-tiny", WORK / "clip-tiny", 16, 8)
    rounds = []
    for _ in range(ROUNDS):
        cones, coop = epoch_seconds(encoded, {"name": "cones"}, 50), epoch_seconds(encoded, {"name": "coop"}, 10)
        rounds.append({"cones": cones, "coop": coop, "ratio": coop / cones})
    return {
        "epoch_ratio_coop_over_cones": round(median(r["ratio"] for r in rounds), 2),
        "epoch_ms": {m: round(1e3 * median(r[m] for r in rounds), 3) for m in ("cones", "coop")},
        "ratios": [round(r["ratio"], 2) for r in rounds],
    }


def curve(folder: Path) -> dict:
    """One epoch of 32 pictures, a single step, at ViT-B/16 width for more and more classes; validation is left out."""
    found = {}
    for classes in (10, 100, 1000):
        store = _random_features(classes)
        cones = _step_seconds(folder, Cones(TextEmbeds.one_per_class(torch.randn(classes, 512))), classes, store, 20)
        coop = _step_seconds(
            folder, ContextTokens(0.02 * torch.randn(16, 512)), classes, store, 3 if classes < 1000 else 2
        )
        found[str(classes)] = {"cones": round(cones, 5), "coop": round(coop, 5), "ratio": round(coop / cones, 1)}
        print(classes, found[str(classes)], flush=True)
    return found


def _random_features(classes: int) -> FeatureStore:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (32,), generator=generator).tolist()
    unit = torch.nn.functional.normalize(torch.randn(32, 512, generator=generator), dim=-1)
    ids = [str(i) for i in range(32)]
    return write_features(WORK / "curve", ids, labels, 1, lambda rows: lambda view: {"image": unit})


def _step_seconds(folder: Path, method: torch.nn.Module, classes: int, store: FeatureStore, steps: int) -> float:
    """The median seconds of a step of the search loop on one batch, after one that warms up."""
    accelerator = Accelerator()
    device = accelerator.device
    backbone, names = Clip(folder, device, logit_scale=100.0), [f"thing {i}" for i in range(classes)]
    settings = parse_method({"name": "cones", "epochs": steps + 1})
    work = Epochs(method, backbone, names, store, store, settings, 0, accelerator, "classification")
    seconds = []
    for epoch in range(steps + 1):
        began = now(device)
        list(work.steps(epoch))
        seconds.append(now(device) - began)
    return median(seconds[1:])


def over_feature_pass(folder: Path) -> dict:
    """A whole ConES search at ViT-B/16 width over the bare image encoder on the same pictures and views."""
    encoded = encode(str(folder), WORK / "clip-b16", 4, 4)
    run = RunConfig(concept="bench", method=parse_method({"name": "cones", "init": "image", "patience": None}))
    row = search_row("bench", run, encoded, Accelerator())
    count = len(encoded.train) * encoded.train.views + len(encoded.val)
    device = Accelerator().device
    backbone = Clip(folder, device)
    pixels = torch.randn(64, 3, 224, 224)
    backbone.encode(pixels[:8])
    began, done = now(device), 0
    while done < count:
        batch = pixels[: min(64, count - done)]
        backbone.encode(batch)
        done += len(batch)
    bare = now(device) - began
    return {
        "search_over_feature_pass": round(row.cost["search_seconds"] / bare, 3),
        "picture_views": count,
        "bare_seconds": round(bare, 2),
        **{k: row.cost[k] for k in ("search_seconds", "feature_seconds", "optimise_seconds")},
    }


if __name__ == "__main__":
    folder = vit_b16(WORK / "vit-b16-random")
    results = tiny()
    results["vit_b16"] = over_feature_pass(folder)
    results["search_over_feature_pass"] = results["vit_b16"]["search_over_feature_pass"]
    results["seconds_per_step_by_classes"] = curve(folder)
    results["peak_memory_mb"] = peak_memory_mb()
    write_results("clip_search", results)
