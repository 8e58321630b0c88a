"""Personalised generation, rung by rung from the published recipe to ConES: steps and seconds to one target.

    python bench/t2i.py        writes bench/results/t2i.json

Every rung learns the same five pictures of a made-up object with the same base model. The target is what the public
recipe of textual inversion reaches at its end: the denoising loss of held-out pictures on the fixed batch, and the
judge's likeness of its samples. A recipe without a fixed batch cannot know when it is there, so its time is that of its
whole schedule; from `+early_stop` on a rung is done when the fixed batch says so, and its looks at it are part of its
time. Looking for the likeness is not. Each rung's rate is the best of a grid of three on a shorter run: by the loss at
its end, or from `+early_stop` on by the steps to that loss.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from common import WORK, write_results
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from cones.backbones.diffusion_text import Sentences
from cones.backbones.judge import Judge
from cones.config import (
    BackboneConfig,
    Denoised,
    GenerationConcept,
    ModelSource,
    SubjectWorldData,
    parse_method,
)
from cones.data import Split, prepare
from cones.encoded import Encoded
from cones.encoding import draw, encode_concept
from cones.methods import build
from cones.randomness import generator_for
from cones.rows import _start
from cones.search import search, text_of
from cones.sentence_rows import set_up
from cones.tasks import likeness
from cones.types import Features, TextTokens

TINY = Path("models/backbones")
STEPS, ACCUMULATION = 3000, 4
"""Of the public recipe: optimiser steps, each of so many pictures one after the other."""
RATES, SHORT = (1.0, 4.0, 16.0), 150
"""Multiples of a rung's published or usual rate, and the steps that they are compared after."""
SAMPLES, GUIDANCE, SAMPLING = 24, 4.0, 20
LOOK = 10
"""Optimiser steps between looks at the fixed batch."""
WORD = "flower"
NOISE = {"copies": 2, "stratified": True, "antithetic": True}
CONES: dict[str, Any] = {"name": "cones", "n_tokens": 2, "batch_size": 5, "warmup_epochs": 0, "patience": None}


@dataclass(frozen=True)
class Look:
    """What a rung had found after some steps and seconds: its sentences' embeddings, and their held-out loss."""

    steps: int
    seconds: float
    loss: float
    sentence: Tensor


@dataclass(frozen=True)
class Rung:
    """A way to search: its usual rate, and `run(rate, steps, every)`, which gives a look each `every` steps."""

    name: str
    rate: float
    run: Callable[[float, int, int], list[Look]]
    stops: bool
    steps: int = STEPS


class Bench:
    """The pictures, the base model and what judges."""

    def __init__(self, work: Path) -> None:
        data = SubjectWorldData(kind="subject_world", thing="zorb", colour="purple", train=5, val=20, test=20)
        prepare(data, work / "prepared")
        beside = {n: ModelSource(source=str(TINY / f"{n}-tiny")) for n in ("clip", "judge")}
        backbone = BackboneConfig(kind="sd", source=str(TINY / "sd-tiny"), **beside)
        self.concept = GenerationConcept(
            task="generation", backbone="sd-tiny", data="zorb", word=WORD, min_crop=1.0, views=2
        )
        drawn = draw(self.concept, work / "prepared")
        self.encoded: Encoded = encode_concept("zorb", self.concept, backbone, drawn, work / "encoded")
        self.sd: Any = self.encoded.backbone()
        train = Split.open(work / "prepared/train")
        self.pictures = [train.picture(i) for i in range(len(train.records))]
        held = Split.open(work / "prepared/val")
        self.judge = Judge(TINY / "judge-tiny")
        self.subject = self.judge.features([held.picture(i) for i in range(len(held.records))])
        self.accelerator = Accelerator(cpu=True)

    def held_loss(self, text: Any) -> float:
        """The loss of the held-out pictures on the fixed batch."""
        held = next(self.encoded.val.batches(100))
        return -float(self.sd.predict(held, text.in_turns(len(held.views))).scores.mean())

    def likeness(self, sentence: Tensor) -> float:
        """The judge's likeness of samples of one sentence, always of the same noise."""
        text = sentence.expand(SAMPLES, -1, -1)
        made = self.sd.sample(text, self.encoded.unconditional, 0, SAMPLING, GUIDANCE)
        return likeness(self.judge.features(made), self.subject)

    def inversion(self, vae: bool, table: bool, every_step_looks: bool) -> Callable[[float, int, int], list[Look]]:
        """Textual inversion as published (Gal et al. 2022; the example of diffusers), or without its VAE pass, or with
        parameters of its own instead of the whole token table."""
        sd, templates = self.sd, self.encoded.about["templates"]

        def run(rate: float, steps: int, every: int) -> list[Look]:
            embedding = sd.text_encoder.embeddings.token_embedding
            word = sd.word_vectors(WORD)[:1]
            before = embedding.weight.detach().clone()
            vectors = nn.Parameter(word.clone())
            new = len(before)  # the new token's place in the table
            if table:
                embedding.weight = nn.Parameter(torch.cat([before, word]))
                kept = torch.cat([before, word])
            trained = embedding.weight if table else vectors
            optimiser = torch.optim.AdamW([trained], rate, weight_decay=1e-2)
            looks: list[Look] = []
            spent, began = 0.0, time.perf_counter()

            def told(sentences: list[str]) -> Any:
                if not table:
                    return sd.embed_text([WORD], TextTokens(vectors, "name", tuple(sentences)))
                found = Sentences.build(sd.tokenizer, sentences, {"": 1})
                ids = torch.where(found.ids < 0, new, found.ids)
                embeds = sd.text_encoder(ids).last_hidden_state
                return replace(self.encoded.text, embeds=embeds, owner=found.owner, mask=found.owner == found.owner)

            for step in range(1, steps + 1):
                generator = generator_for(0, step)
                for part in range(ACCUMULATION):
                    place = (step * ACCUMULATION + part) % len(self.pictures)
                    flip = int(torch.randint(2, (1,), generator=generator))
                    if vae:
                        picture = self.pictures[place]
                        shown = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else picture
                        latent = {n: t.clone() for n, t in sd.encode(sd.pixels([shown])).items()}
                        features = Features(latent, torch.zeros(1, dtype=torch.long))
                    else:
                        features = self.encoded.train.batch(torch.tensor([place]), torch.tensor([flip]))
                    sentence = templates[int(torch.randint(len(templates), (1,), generator=generator))]
                    (sd.loss(features, told([sentence]), generator) / ACCUMULATION).backward()
                optimiser.step()
                optimiser.zero_grad()
                if table:
                    with torch.no_grad():  # every other row goes back to what it was
                        embedding.weight[:new] = kept[:new]
                if step % every == 0 or step == steps:
                    paused = time.perf_counter()
                    with torch.no_grad():
                        text = told(templates)
                        loss = self.held_loss(text)
                    if not every_step_looks:  # such a recipe does not look
                        spent -= time.perf_counter() - paused
                    looks.append(Look(step, time.perf_counter() - began + spent, loss, text.embeds[:1].detach()))
            if table:
                embedding.weight = nn.Parameter(before, requires_grad=False)
            return looks

        return run

    def cones(self, **settings: Any) -> Callable[[float, int, int], list[Look]]:
        """ConES by the library's own loop, which validates on the fixed batch; an epoch is one step."""

        def run(rate: float, steps: int, every: int) -> list[Look]:
            made = parse_method({**CONES, "lr": rate, "epochs": steps, "validate_every": every, **settings})
            assert isinstance(made, Denoised), "ConES has these settings"
            began = time.perf_counter()
            method = build(made, self.sd, _start(self.encoded, self.sd, [WORD]))
            set_up(made, self.sd)
            looks: list[Look] = []

            def look(line: dict[str, float]) -> None:
                if "val_denoising_loss" in line:
                    with torch.no_grad():
                        sentence = text_of(method, self.sd, [WORD]).embeds[:1].clone()
                    spent = time.perf_counter() - began
                    looks.append(Look(int(line["step"]), spent, line["val_denoising_loss"], sentence))

            store, val = self.encoded.train, self.encoded.val
            search(method, self.sd, [WORD], store, val, made, 0, self.accelerator, None, look, "generation")
            self.sd.draw_noise(1, False, False)
            return looks

        return run

    def rungs(self) -> list[Rung]:
        """From the public recipe on, each with one thing more; the last two are `cones` with one."""
        published = 5e-4 * ACCUMULATION
        return [
            Rung("public_recipe", published, self.inversion(True, True, False), False),
            Rung("+cached_latents", published, self.inversion(False, True, False), False),
            Rung("+own_rows", published, self.inversion(False, False, False), False),
            Rung("+early_stop", published, self.inversion(False, False, True), True),
            Rung("cones", 0.08, self.cones(), True, 600),
            Rung("cones_low_variance", 0.08, self.cones(noise=NOISE), True, 600),
            Rung("cones_warm_start", 0.08, self.cones(init="image"), True, 600),
        ]

    def floor(self, rounds: int = 30) -> dict[str, float]:
        """Milliseconds of a ConES step in the loop, and of the frozen UNet alone, forward and back to the embedding."""
        latents = torch.randn(5, *self.encoded.train.arrays["mean"].shape[2:])
        times = torch.randint(1000, (5,))
        embeds = self.encoded.text.embeds[:5].clone().requires_grad_()

        def bare() -> None:
            F.mse_loss(self.sd.unet(latents, times, embeds).sample, latents).backward()
            embeds.grad = None

        def timed(steps: int) -> float:
            began = time.perf_counter()
            self.cones()(0.05, steps, 10**6)
            return time.perf_counter() - began

        floors, loops = [], []
        for _ in range(5):
            began = time.perf_counter()
            for _ in range(rounds):
                bare()
            floors.append((time.perf_counter() - began) / rounds)
            loops.append((timed(rounds + 2) - timed(2)) / rounds)  # the start and the last look are in both
        return {"floor_ms": 1000 * median(floors), "loop_ms": 1000 * median(loops)}


def reached(looks: list[Look], target: tuple[float, float] | None, stops: bool) -> tuple[float, float]:
    """What rates are compared by: the steps to the target's loss where a rung looks for it, then its loss at last."""
    there = [look.steps for look in looks if stops and target is not None and look.loss <= target[0]]
    return (min(there, default=float("inf")), looks[-1].loss)


def measured(bench: Bench, rung: Rung, target: tuple[float, float] | None) -> dict[str, Any]:
    """A rung at the best of its rates: steps and seconds to the target; without one it sets it at its end."""
    short = {share * rung.rate: rung.run(share * rung.rate, SHORT, LOOK) for share in RATES}
    rate = min(short, key=lambda rate: reached(short[rate], target, rung.stops))
    looks = rung.run(rate, rung.steps, LOOK if rung.stops else rung.steps // 10)
    last = looks[-1]
    about: dict[str, Any] = {
        "name": rung.name,
        "rate": rate,
        "rates": {f"{r:g}": round(v[-1].loss, 5) for r, v in short.items()},
    }
    if target is None:
        target = (last.loss, bench.likeness(last.sentence))
    loss, alike = target
    there = [look for look in looks if look.loss <= loss]
    if not rung.stops:
        there = there and [last]
    found = next((look for look in there if bench.likeness(look.sentence) >= alike), None)
    kept = found or min(looks, key=lambda look: look.loss)
    return about | {
        "steps_to_target": found and found.steps,
        "seconds_to_target": found and round(found.seconds, 2),
        "steps_run": last.steps,
        "seconds_run": round(last.seconds, 2),
        "held_out_loss": round(kept.loss, 5),
        "likeness": round(bench.likeness(kept.sentence), 4),
        "milliseconds_a_step": round(1000 * last.seconds / last.steps, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="The ladder from textual inversion to ConES.")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the public recipe")
    steps = parser.parse_args().steps
    bench, ladder, target = Bench(WORK / "t2i"), [], None
    start = bench.encoded.text
    about = {"word": {"held_out_loss": bench.held_loss(start), "likeness": bench.likeness(start.embeds[:1])}}
    for rung in bench.rungs():
        line = measured(bench, replace(rung, steps=min(rung.steps, steps)), target)
        target = target or (line["held_out_loss"], line["likeness"])
        ladder.append(line)
        print(line, flush=True)
    floor = bench.floor()
    first = ladder[0]["seconds_to_target"]
    results = {
        "ladder": ladder,
        "floor_ratio": round(floor["loop_ms"] / floor["floor_ms"], 3),
        "floor": {k: round(v, 2) for k, v in floor.items()},
        "times_faster": {
            x["name"]: x["seconds_to_target"] and round(first / x["seconds_to_target"], 1) for x in ladder
        },
        "what": {**about, "pictures": 5, "held_out": 20, "steps": steps, "samples": SAMPLES, "looks_every": LOOK},
    }
    write_results("t2i", results)


if __name__ == "__main__":
    main()
