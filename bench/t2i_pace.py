"""What a step of the rungs of `t2i.py` costs, turn about: the published recipe beside diffusers' example, and the
library's loop beside the frozen UNet alone."""

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from t2i_inversion import NewToken
from t2i_rungs import PICTURES, PUBLISHED_PICTURES, WEIGHT_DECAY, Recipe, Rung
from t2i_searches import WORD, Bench, Stopwatch
from torch import Tensor
from torch.nn import functional as F

from cones.features.encoded import Encoded
from cones.interfaces.randomness import generator_for

RATE = 0.01
IN_LOOP = ("+library_loop", "+one_batch", "cones_one_vector", "+two_vectors", "cones")


class Example:
    """A step as diffusers' example computes it, with the same models and nothing of this package: what the time of the
    published recipe is compared with. A picture is resized, and its sentence cut into tokens, whenever it is shown; all
    rows of the table but the new one are put back after each picture."""

    def __init__(self, sd: Any, encoded: Encoded, word: str, rate: float, pictures: list[Image.Image]) -> None:
        self.vae, self.unet, self.text_encoder = sd.vae, sd.unet, sd.text_encoder
        self.tokenizer, self.schedule, self.size = sd.tokenizer, sd.schedule, sd.size
        self.templates, self.word, self.pictures = encoded.about["templates"], word, pictures
        self.stands = sd.tokenizer(word, add_special_tokens=False).input_ids[0]
        self.table = NewToken(sd, word)
        self.optimiser = torch.optim.AdamW([self.table.weight], rate, weight_decay=WEIGHT_DECAY)

    def shown(self, place: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A picture (1, 3, h, w), and the tokens (1, T) of a sentence about it."""
        picture = self.pictures[place].convert("RGB").resize((self.size, self.size), Image.Resampling.BICUBIC)
        if torch.rand(1, generator=generator) < 0.5:
            picture = ImageOps.mirror(picture)
        pixels = torch.from_numpy((np.asarray(picture) / 127.5 - 1).astype(np.float32)).permute(2, 0, 1)[None]
        sentence = self.templates[int(torch.randint(len(self.templates), (1,), generator=generator))].format(self.word)
        ids = self.tokenizer(sentence, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return pixels, torch.where(ids == self.stands, self.table.place, ids)

    def step(self, number: int, generator: torch.Generator) -> None:
        """One optimiser step, the `number`-th."""
        weight, other = self.table.weight, torch.arange(len(self.table.weight)) != self.table.place
        for part in range(PUBLISHED_PICTURES):
            pixels, ids = self.shown((number * PUBLISHED_PICTURES + part) % len(self.pictures), generator)
            latents = self.vae.encode(pixels).latent_dist.sample(generator) * self.vae.config.scaling_factor
            noise = torch.randn(latents.shape, generator=generator)
            times = torch.randint(self.schedule.config.num_train_timesteps, (1,), generator=generator)
            noisy = self.schedule.add_noise(latents, noise, times)
            predicted = self.unet(noisy, times, self.text_encoder(ids).last_hidden_state).sample
            (F.mse_loss(predicted, noise) / PUBLISHED_PICTURES).backward()
            if part == PUBLISHED_PICTURES - 1:
                self.optimiser.step()
                self.optimiser.zero_grad()
            with torch.no_grad():
                weight[other] = self.table.original[other]

    def close(self) -> None:
        self.table.close()


def paces(bench: Bench, rungs: list[Rung], rounds: int = 5, steps: int = 20) -> dict[str, float]:
    """Milliseconds of a step by name, the median of some rounds in which each has its turn: `example` as diffusers
    has it, rungs without their looks, and `floor`, the frozen UNet forward and back to a batch's embeddings."""
    recipes = {rung.name: rung.recipe for rung in rungs}
    published = recipes["public_recipe"]
    latents = torch.randn(PICTURES, *bench.encoded.train.arrays["mean"].shape[2:])
    times = torch.randint(1000, (PICTURES,))
    embeds = bench.encoded.text.embeds[:PICTURES].clone().requires_grad_()

    def stepped(make: Callable[[], Any]) -> float:
        search = make()
        watch = Stopwatch()
        try:
            for number in range(steps):
                search.step(number, generator_for(0, number))
        finally:
            search.close()
        return watch.seconds / steps

    def looped(recipe: Recipe) -> float:
        def timed(count: int) -> float:
            watch = Stopwatch()
            bench.run(recipe, RATE, 0, count, 10**6, lambda look: False)
            return watch.seconds

        return (timed(steps + 2) - timed(2)) / steps  # the start and the looks are in both

    def bare() -> float:
        watch = Stopwatch()
        for _ in range(steps):
            F.mse_loss(bench.sd.unet(latents, times, embeds).sample, latents).backward()
            embeds.grad = None
        return watch.seconds / steps

    def look() -> float:
        watch = Stopwatch()
        for _ in range(3):
            bench.held_loss(bench.encoded.text)
        return watch.seconds / 3

    kinds: dict[str, Callable[[], float]] = {
        "example": lambda: stepped(lambda: Example(bench.sd, bench.encoded, WORD, RATE, bench.pictures)),
        "public_recipe": lambda: stepped(lambda: bench.inversion(published, RATE, steps)),
        **{name: partial(looped, recipes[name]) for name in IN_LOOP},
        "floor": bare,
        "look": look,
    }
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, kind in kinds.items():
            found[name].append(1000 * kind())
    return {name: round(median(values), 2) for name, values in found.items()}
