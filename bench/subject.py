"""A subject of five generated pictures by every way there is, over three draws: likeness, editability and what it cost.

    python bench/subject.py        writes bench/results/subject.json

A draw has other pictures of the subject and another seed. Textual inversion and ConES have the same kept latents, the
same batches, looks and patience, and rates from a grid that is widened by the same rule until the best is inside.
Validation, which chooses, is the loss of the five pictures on fixed noise at fixed timesteps (Voronov et al. 2023);
test pictures are twenty others. Fine-tunings have the same steps from the class word and from ConES. All runs on one
thread. A line that was measured is kept in `cache/bench/subject`, so that a bench that was stopped loses one.
"""

import argparse
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from common import WORK, best_rate, kept, key_of, spread, write_results

from cones.backbones.sd.settings import DiffusionModel
from cones.backbones.settings import ModelSource
from cones.common.errors import SearchError
from cones.concept.file import WEIGHTS_FILE
from cones.config.params import parse_finetune, parse_method
from cones.config.tables import RunConfig
from cones.features.encoded import Encoded
from cones.finetuning.diffusion import finetune_row
from cones.finetuning.diffusion import prepare as prior_of
from cones.inference.open import load
from cones.readers.prepare import prepare
from cones.readers.world import SubjectWorldData
from cones.results.evaluate import evaluate_rows
from cones.search.outcome import FoundRow, write_row
from cones.search.row import search_row
from cones.tasks.encode import draw, encode_concept
from cones.tasks.generation.judge import Judges
from cones.tasks.generation.settings import GenerationConcept

TINY = Path("models/backbones")
SEEDS = (0, 1, 2)
PROMPTS = ["a red {}", "a {} on a blue background", "a striped {}", "a large {} on a white background"]
LOOP = {"epochs": 300, "batch_size": 5, "validate_every": 10, "patience": 60, "warmup_epochs": 0}
QUIET = {"copies": 2, "stratified": True, "antithetic": True}
METHODS: dict[str, tuple[dict[str, Any], float | None]] = {
    "class word": ({"name": "zero_shot"}, None),
    "textual inversion": ({"name": "textual_inversion", **LOOP}, 0.005),
    "textual inversion, 2 tokens": ({"name": "textual_inversion", "n_tokens": 2, **LOOP}, 0.005),
    "ConES": ({"name": "cones", "n_tokens": 2, **LOOP}, 0.0075),
    "ConES, quiet noise": ({"name": "cones", "n_tokens": 2, **LOOP, "noise": QUIET}, 0.0075),
}
"""Settings, and the lowest rate of the grid."""
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
        self.backbone = DiffusionModel(kind="sd", source=str(TINY / "sd-tiny"), **beside)
        self.concept = GenerationConcept(
            task="generation", backbone="sd-tiny", data="zorb", word="flower", prompts=PROMPTS, seed=seed, guidance=4.0
        )
        drawn = draw(self.concept, work / "prepared")
        self.encoded: Encoded = encode_concept("zorb", self.concept, self.backbone, drawn, work / "encoded")
        self.accelerator = Accelerator(cpu=True)

    def searched(self, method: dict[str, Any], usual: float | None) -> tuple[FoundRow, dict[str, Any]]:
        """A method at the rate that is best on validation, and the rates that were tried with their losses."""
        best: tuple[float, FoundRow] | None = None

        def judged(rate: float | None) -> float:
            nonlocal best
            settings = parse_method(method | ({} if rate is None else {"lr": rate}))
            run = RunConfig(concept="zorb", method=settings)
            try:
                row = search_row("row", run, self.encoded, self.accelerator)
            except SearchError:  # such a rate is too large
                return math.inf
            loss = row.metrics["denoising_loss"]
            best = min(best or (loss, row), (loss, row), key=lambda one: one[0])
            return loss

        if usual is None:
            judged(None)
            rates: dict[str, Any] = {"rate": None}
        else:
            rate, tried = best_rate(usual, judged)
            losses = {f"{r:g}": loss if math.isfinite(loss) else None for r, loss in tried.items()}
            rates = {"rate": rate, "rate_is_inside": min(tried) < rate < max(tried), "rates": losses}
        assert best is not None, "no rate of the grid was small enough"
        return best[1], rates

    def judged(self, folder: Path) -> dict[str, float]:
        """Test metrics of a row's file."""
        judges = Judges.of(self.concept, self.backbone)
        paths = {"row": folder / "concept.safetensors"}
        return evaluate_rows(paths, self.work / "prepared/test", self.work, judges=judges)["row"].metrics

    def line(self, name: str) -> dict[str, Any]:
        """Everything about one way, measured once."""
        return kept(self.folder_of(name) / "line.json", partial(self.measured, name))

    def measured(self, name: str) -> dict[str, Any]:
        """Search or fine-tune a row by one way, and judge it."""
        folder, rates = self.folder_of(name), {"rate": None}
        folder.mkdir(parents=True, exist_ok=True)
        if name in METHODS:
            found, rates = self.searched(*METHODS[name])
        else:
            first, kind = FINETUNES[name]
            self.line(first)
            made = parse_finetune({"concept": "zorb", "from": "row", **kind})
            start = load(self.folder_of(first) / "concept.safetensors")
            prior = prior_of("row", made, self.encoded, "cpu")
            found = finetune_row("row", made, start, self.encoded, self.accelerator, made=prior)
            (folder / WEIGHTS_FILE).write_bytes(found.weights)
        write_row(folder, "generation", found)
        return {**rates, "val": found.metrics, "test": self.judged(folder), "cost": found.cost}

    def folder_of(self, name: str) -> Path:
        """Where a way's row and line are written."""
        return self.work / "rows" / key_of("subject", name, METHODS, FINETUNES, self.encoded.about)


def main() -> None:
    parser = argparse.ArgumentParser(description="Rows of generation over several draws.")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--epochs", type=int, default=LOOP["epochs"], help="of a search")
    parser.add_argument("--steps", type=int, default=TUNING["steps"], help="of a fine-tuning")
    asked = parser.parse_args()
    seeds, whole = asked.seeds, parser.parse_args([])
    for settings, _ in METHODS.values():
        settings |= {"epochs": asked.epochs} if "epochs" in settings else {}
    for _, settings in FINETUNES.values():
        settings["steps"] = asked.steps
    torch.set_num_threads(1)
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
        table[name]["rates_tried"] = [r.get("rates") for r in runs]
        table[name]["rates_are_inside"] = all(r.get("rate_is_inside", True) for r in runs)
    results = {"pictures": 5, "seeds": list(seeds), "threads": 1, "split_hashes": hashes, "table": table}
    if asked == whole:
        write_results("subject", results)
    else:
        print("a trial, which writes no results:", results)


if __name__ == "__main__":
    main()
