"""A subject of five generated pictures by every way there is, over three draws: likeness, editability and what it cost.

    python bench/subject.py        writes bench/results/subject.json

A draw has other pictures of the subject and another seed. Textual inversion and ConES have the same kept latents, the
same batches, looks and patience, and a grid of three rates each. Validation, which chooses, is the loss of the five
pictures on fixed noise at fixed timesteps (Voronov et al. 2023); test pictures are twenty others. Fine-tunings have the
same steps from the class word and from ConES. A line that was measured is kept in `cache/bench/subject`.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from common import WORK, spread, write_results

from cones.concept import WEIGHTS_FILE
from cones.config import (
    BackboneConfig,
    FinetuneConfig,
    GenerationConcept,
    ModelSource,
    RunConfig,
    SubjectWorldData,
    parse_method,
)
from cones.data import prepare
from cones.dreambooth import class_pictures, dreambooth_row
from cones.encoded import Encoded
from cones.encoding import draw, encode_concept
from cones.evaluation import evaluate_rows
from cones.files import content_hash, read_json, write_json
from cones.judging import Judges
from cones.rows import FoundRow, search_row, write_row

TINY = Path("models/backbones")
SEEDS = (0, 1, 2)
PROMPTS = ["a red {}", "a {} on a blue background", "a striped {}", "a large {} on a white background"]
LOOP = {"epochs": 300, "batch_size": 5, "validate_every": 10, "patience": 60, "warmup_epochs": 0}
QUIET = {"copies": 2, "stratified": True, "antithetic": True}
METHODS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "class word": ({"name": "zero_shot"}, ()),
    "textual inversion": ({"name": "textual_inversion", **LOOP}, (0.005, 0.02, 0.08)),
    "textual inversion, 2 tokens": ({"name": "textual_inversion", "n_tokens": 2, **LOOP}, (0.005, 0.02, 0.08)),
    "ConES": ({"name": "cones", "n_tokens": 2, **LOOP}, (0.03, 0.1, 0.3)),
    "ConES, quiet noise": ({"name": "cones", "n_tokens": 2, **LOOP, "noise": QUIET}, (0.03, 0.1, 0.3)),
}
TUNING = {"steps": 150, "batch_size": 5, "validate_every": 25}
FINETUNES: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA from the class word": ("class word", {"kind": "lora", "lr": 1e-3, "noise": QUIET, **TUNING}),
    "LoRA from ConES": ("ConES", {"kind": "lora", "lr": 1e-3, "noise": QUIET, **TUNING}),
    "DreamBooth from the class word": ("class word", {"kind": "dreambooth", "lr": 2e-4, "noise": QUIET, **TUNING}),
    "DreamBooth from ConES": ("ConES", {"kind": "dreambooth", "lr": 2e-4, "noise": QUIET, **TUNING}),
}


class Draw:
    """One draw of the subject's pictures, and the rows searched on it."""

    def __init__(self, seed: int, work: Path) -> None:
        self.seed, self.work = seed, work
        data = SubjectWorldData(kind="subject_world", thing="zorb", colour="purple", train=5, test=20, seed=seed)
        prepare(data, work / "prepared")
        beside = {n: ModelSource(source=str(TINY / f"{n}-tiny")) for n in ("clip", "judge")}
        self.backbone = BackboneConfig(kind="sd", source=str(TINY / "sd-tiny"), **beside)
        self.concept = GenerationConcept(
            task="generation", backbone="sd-tiny", data="zorb", word="flower", prompts=PROMPTS, seed=seed, guidance=4.0
        )
        drawn = draw(self.concept, work / "prepared")
        self.encoded: Encoded = encode_concept("zorb", self.concept, self.backbone, drawn, work / "encoded")
        self.accelerator = Accelerator(cpu=True)

    def searched(self, method: dict[str, Any], rates: tuple[float, ...]) -> tuple[FoundRow, float | None]:
        """A method at the rate that is best on validation, and that rate."""
        found = []
        for rate in rates or (None,):
            settings = parse_method(method | ({} if rate is None else {"lr": rate}))
            row = search_row("row", RunConfig(concept="zorb", method=settings), self.encoded, self.accelerator)
            found.append((row.metrics["denoising_loss"], rate, row))
        best = min(found, key=lambda f: f[0])
        return best[2], best[1]

    def judged(self, folder: Path) -> dict[str, float]:
        """Test metrics of a row's file."""
        judges = Judges.of(self.concept, self.backbone)
        paths = {"row": folder / "concept.safetensors"}
        return evaluate_rows(paths, self.work / "prepared/test", self.work, judges=judges)["row"].metrics

    def line(self, name: str) -> dict[str, Any]:
        """Everything about one way, measured once."""
        settings = METHODS.get(name) or FINETUNES[name]
        key = content_hash([name, settings, METHODS, self.encoded.about])[:12]
        folder = self.work / "rows" / key
        if (folder / "line.json").exists():
            return read_json(folder / "line.json")
        folder.mkdir(parents=True, exist_ok=True)
        rate = None
        if name in METHODS:
            found, rate = self.searched(*METHODS[name])
        else:
            first, kind = FINETUNES[name]
            self.line(first)
            start = self.folder_of(first)
            made = FinetuneConfig.model_validate({"concept": "zorb", "from": "row", **kind})
            from cones.concept import Concept

            prior = class_pictures(made, self.encoded, "cpu")
            tuned = dreambooth_row(
                "row", made, Concept.load(start / "concept.safetensors"), self.encoded, self.accelerator, prior
            )
            (folder / WEIGHTS_FILE).write_bytes(tuned.weights)
            found = tuned
        write_row(folder, "generation", found)
        told = {"rate": rate, "val": found.metrics, "test": self.judged(folder), "cost": found.cost}
        write_json(folder / "line.json", told)
        return told

    def folder_of(self, name: str) -> Path:
        """Where a way's row was written."""
        key = content_hash([name, METHODS[name], METHODS, self.encoded.about])[:12]
        return self.work / "rows" / key


def main() -> None:
    parser = argparse.ArgumentParser(description="Rows of generation over several draws.")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    seeds = parser.parse_args().seeds
    lines: dict[str, list[dict[str, Any]]] = {name: [] for name in (*METHODS, *FINETUNES)}
    hashes = {}
    for seed in seeds:
        torch.manual_seed(seed)
        made = Draw(seed, WORK / "subject" / str(seed))
        hashes[seed] = made.encoded.about["split_hash"][:16]
        for name in lines:
            lines[name].append(made.line(name))
            print(seed, name, lines[name][-1]["test"], lines[name][-1]["cost"]["optimise_seconds"], flush=True)
    table = {}
    for name, runs in lines.items():
        table[name] = {f"test_{m}": spread([r["test"][m] for r in runs]) for m in runs[0]["test"]}
        table[name] |= {m: spread([r["cost"][m] for r in runs]) for m in ("optimise_seconds", "steps", "steps_to_best")}
        table[name] |= {"trained_parameters": runs[0]["cost"]["trained_parameters"], "rates": [r["rate"] for r in runs]}
    write_results("subject", {"pictures": 5, "seeds": list(seeds), "split_hashes": hashes, "table": table})


if __name__ == "__main__":
    main()
