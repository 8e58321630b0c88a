"""Personalised generation, rung by rung from the published recipe to ConES: steps and seconds to one target.

    python bench/t2i.py        writes bench/results/t2i.json

Every rung learns the same five pictures of a made-up object with the same base model on one thread; seconds are those
of the CPU. Each changes one thing of the rung that it stands after (`t2i_rungs.py`). The target is what the published
recipe of textual inversion reaches at its end: the denoising loss of held-out pictures on the fixed batch, and the
judge's likeness of its samples. A recipe without a fixed batch cannot know when it is there, so its time is that of its
whole schedule. From `+early_stop` on a rung is done when it has both, its looks at the fixed batch are part of its
time, looking for the likeness is not, and shown is the median of three seeds. Encoding the pictures once, where latents
are kept, and learning the map of `cones_warm_start`, once for a base model, are not part of it. Each rung's rate is the
best of a grid on the first steps of a seed of its own: by the loss at their end, or from `+early_stop` on by the steps
to the target.
What was measured is kept in `cache/bench/t2i`, so that a bench that was stopped loses one rung.
"""

import argparse
import math
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from common import WORK, best_rate, kept, key_of, write_results
from t2i_inversion import PUBLISHED_RATE
from t2i_pace import paces
from t2i_rungs import LIBRARY_STEPS, PICTURES, PUBLISHED_PICTURES, WEIGHT_DECAY, Recipe, ladder
from t2i_searches import SAMPLES, Bench, Look

from cones.common.errors import SearchError

USUAL = {"textual_inversion": PUBLISHED_RATE * PUBLISHED_PICTURES, "cones": 0.005}
"""The lowest rates of the methods' grids."""
RATE_SEED, SEEDS = 0, (1, 2, 3)
LOOK = 10
"""Optimiser steps between looks at the fixed batch."""
SAME_BUT_ENCODER = {"one_vector": ("+one_batch", "cones_one_vector"), "two_vectors": ("+two_vectors", "cones")}


@dataclass(frozen=True)
class Size:
    """How much is measured: steps of the published recipe, of which its authors take 3000; steps that rates are
    compared on; seeds of a rung that stops."""

    steps: int = 1000
    short: int = 150
    seeds: int = len(SEEDS)

    def of(self, recipe: Recipe) -> int:
        """Steps of a recipe at most."""
        return self.steps if recipe.rate == "constant" else min(self.steps, LIBRARY_STEPS)


@dataclass(frozen=True)
class Target:
    """What a search is to reach: a held-out loss at most, a likeness at least."""

    loss: float
    likeness: float


def run_to(
    bench: Bench,
    recipe: Recipe,
    rate: float,
    seed: int,
    steps: int,
    every: int,
    target: Target | None,
    at_most: float = math.inf,
) -> tuple[Look, bool, Look]:
    """Search by a recipe until it has the target, if it looks for it, or for `at_most` of its `steps`: the last look,
    whether it has the target, and the look of the least loss."""
    best = last = Look(0, 0.0, math.inf, torch.empty(0))
    reached = False

    def on_look(look: Look) -> bool:
        nonlocal best, last, reached
        last, best = look, min(best, look, key=lambda one: one.loss)
        if recipe.stops and target is not None and look.loss <= target.loss:
            reached = bench.likeness(look.sentence) >= target.likeness
        return reached or look.steps >= at_most

    bench.run(recipe, rate, seed, steps, every, on_look)
    return last, reached, best


def rate_of(bench: Bench, recipe: Recipe, size: Size, target: Target | None) -> dict[str, Any]:
    """The best rate of a recipe, and all that were tried: their steps to the target, and the loss where they ended."""

    every = LOOK if recipe.stops else size.short

    def judged(rate: float) -> tuple[float, float]:
        """Steps to the target, where a recipe looks for it, then the loss; endless of a search that diverges."""
        try:
            last, reached, _ = run_to(bench, recipe, rate, RATE_SEED, size.of(recipe), every, target, size.short)
        except SearchError:
            return math.inf, math.inf
        return (last.steps if reached else math.inf), (last.loss if math.isfinite(last.loss) else math.inf)

    rate, tried = best_rate(USUAL[recipe.method], judged)
    told = {
        f"{r:g}": {"steps_to_target": None if math.isinf(s) else s, "loss": None if math.isinf(x) else round(x, 5)}
        for r, (s, x) in tried.items()
    }
    return {"rate": rate, "rate_is_inside": min(tried) < rate < max(tried), "rates": told}


def run_of(bench: Bench, recipe: Recipe, rate: float, seed: int, steps: int, target: Target | None) -> dict[str, Any]:
    """One search to the target, or to its end; what it had there, or if it stops and never reached it, at its best."""
    last, reached, best = run_to(bench, recipe, rate, seed, steps, LOOK if recipe.stops else steps, target)
    shown = last if reached or not recipe.stops else best
    return {
        "seed": seed,
        "steps": last.steps,
        "seconds": round(last.seconds, 2),
        "reached": reached or not recipe.stops,
        "held_out_loss": shown.loss,
        "likeness": bench.likeness(shown.sentence),
    }


def measured(bench: Bench, recipe: Recipe, size: Size, target: Target | None) -> dict[str, Any]:
    """A recipe at its best rate: the run whose seconds are the median, and all of them."""
    chosen = rate_of(bench, recipe, size, target)
    seeds = SEEDS[: size.seeds] if recipe.stops else SEEDS[:1]
    runs = [run_of(bench, recipe, chosen["rate"], seed, size.of(recipe), target) for seed in seeds]
    middle = sorted(runs, key=lambda run: run["seconds"] if run["reached"] else math.inf)[len(runs) // 2]
    return {
        "steps_to_target": middle["steps"] if middle["reached"] else None,
        "seconds_to_target": middle["seconds"] if middle["reached"] else None,
        "held_out_loss": middle["held_out_loss"],
        "likeness": middle["likeness"],
        **chosen,
        "runs": runs,
    }


def without_encoder(lines: dict[str, dict[str, Any]], pace: dict[str, float]) -> dict[str, dict[str, float | None]]:
    """How many times as much textual inversion takes as ConES, where nothing else differs."""
    ratios: dict[str, dict[str, float | None]] = {}
    for vectors, (inversion, cones) in SAME_BUT_ENCODER.items():
        ratios[vectors] = {"milliseconds_a_step": round(pace[inversion] / pace[cones], 2)}
        for what in ("steps_to_target", "seconds_to_target"):
            pair = lines[inversion][what], lines[cones][what]
            ratios[vectors][what] = round(pair[0] / pair[1], 2) if all(pair) else None
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description="The ladder from textual inversion to ConES.")
    parser.add_argument("--steps", type=int, default=Size.steps, help="of the published recipe")
    parser.add_argument("--short", type=int, default=Size.short, help="steps that rates are compared on")
    parser.add_argument("--seeds", type=int, default=Size.seeds, choices=range(1, len(SEEDS) + 1))
    size = Size(**vars(parser.parse_args()))
    torch.set_num_threads(1)
    work = WORK / "t2i"
    bench, rungs, target = Bench(work), ladder(), None
    lines: dict[str, dict[str, Any]] = {}
    start = bench.encoded.text
    word = {"held_out_loss": bench.held_loss(start), "likeness": bench.likeness(start.embeds[:1])}
    for rung in rungs:
        key = key_of("t2i", asdict(rung.recipe), asdict(size), target and asdict(target), bench.encoded.about)
        found = kept(work / f"{key}.json", partial(measured, bench, rung.recipe, size, target))
        lines[rung.name] = {"name": rung.name, "after": rung.after, "changes": rung.changes, **found}
        target = target or Target(found["held_out_loss"], found["likeness"])
        print(lines[rung.name], flush=True)
    key = key_of("t2i", "pace", bench.encoded.about)
    pace = kept(work / f"{key}.json", partial(paces, bench, rungs))
    first = lines["public_recipe"]["seconds_to_target"]
    results = {
        "ladder": list(lines.values()),
        "times_faster": {
            n: x["seconds_to_target"] and round(first / x["seconds_to_target"], 1) for n, x in lines.items()
        },
        "without_encoder": without_encoder(lines, pace),
        "milliseconds_a_step": pace,
        "floor_ratio": round(pace["cones"] / pace["floor"], 3),
        "what": {
            "word": word, "pictures": PICTURES, "held_out": len(bench.encoded.val), **asdict(size),
            "library_steps": LIBRARY_STEPS, "samples": SAMPLES, "looks_every": LOOK, "threads": 1,
            "weight_decay": WEIGHT_DECAY,
        },
    }  # fmt: skip
    if size == Size():
        write_results("t2i", results)
    else:
        print("a trial, which writes no results:", results)


if __name__ == "__main__":
    main()
