"""Pretrain `sd-tiny` on the generated world's base concepts; its text encoder is `clip-tiny`'s (`make pretrain`)."""

import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cones.backbones.judge import Judge
from cones.backbones.sd.sd import Diffusion
from cones.common.console import progress_bar
from cones.common.files import fresh_folder
from cones.common.layout import BACKBONES
from cones.common.process import cores
from cones.pretrain.sd_model import (
    IMAGE_SIZE,
    TOKENS,
    UNCONDITIONAL,
    latents_of,
    new_parts,
    text_parts,
    train_autoencoder,
    train_unet,
    write_pipeline,
)
from cones.synthetic.things import Thing
from cones.synthetic.world import CAPTIONS, COLOURS, SHAPES, on_ground, scene, with_article

PICTURES, VAE_STEPS, UNET_STEPS, SEED = 30_000, 1_800, 5_000, 2
VAE_BATCH, UNET_BATCH = 32, 64
SAMPLES, GUIDANCE = 200, (2.0, 4.0, 7.5)
TOLD = {"size": 0.4, "colour": 0.85, "texture": 0.7, "background": 0.4}
"""How often a caption tells an attribute; more often than those that a CLIP is trained on, to be steered by it."""


def main() -> None:
    began = time.perf_counter()
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    with ProcessPoolExecutor(len(cores())) as workers:
        drawn = list(workers.map(captioned, range(PICTURES), chunksize=200))
    images = torch.from_numpy(np.stack([image for image, _ in drawn])).permute(0, 3, 1, 2)

    def some(step: int) -> Tensor:
        pixels = images[torch.randint(PICTURES, (VAE_BATCH,), generator=generator)].float() / 127.5 - 1
        return pixels.flip(-1) if step % 2 else pixels

    text, tokenizer = text_parts(BACKBONES / "clip-tiny")
    vae, unet, scheduler = new_parts(text.config.hidden_size)
    with progress_bar("pretraining sd-tiny's autoencoder", VAE_STEPS) as advance:
        train_autoencoder(vae, some, VAE_STEPS, lambda step, loss: advance(note=f"loss {loss:.3f}"))
    seconds = time.perf_counter() - began
    means, stds = latents_of(vae, images)
    embeds = embedded(text, tokenizer, [caption for _, caption in drawn])
    empty = embedded(text, tokenizer, [""])[0].float()

    def noisy(step: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(PICTURES, (UNET_BATCH,), generator=generator)
        noise = torch.randn(means[rows].shape, generator=generator)
        told = embeds[rows].float()
        told[torch.rand(UNET_BATCH, generator=generator) < UNCONDITIONAL] = empty
        return (means[rows] + stds[rows] * noise) * vae.config.scaling_factor, told

    with progress_bar("pretraining sd-tiny's UNet", UNET_STEPS) as advance:
        unet = train_unet(unet, scheduler, noisy, UNET_STEPS, lambda step, loss: advance(note=f"loss {loss:.3f}"))
    with fresh_folder(BACKBONES / "sd-tiny") as out:
        write_pipeline(out, vae, unet, text, tokenizer, scheduler)
    spent = time.perf_counter() - began
    told = ", ".join(f"{share:.3f} at guidance {scale:g}" for scale, share in named_right().items())
    print(f"sd-tiny: autoencoder {seconds:.0f} s, in all {spent:.0f} s")
    print(f"colour and shape right in {SAMPLES} samples: {told}")


def named_right() -> dict[float, float]:
    """How often the judge names both colour and shape of samples as their captions do, by the scale of guidance."""
    sd, judge = Diffusion(BACKBONES / "sd-tiny"), Judge(BACKBONES / "judge-tiny")
    rng = np.random.default_rng(SEED)
    asked = [(str(rng.choice(list(COLOURS))), SHAPES[i % len(SHAPES)]) for i in range(SAMPLES)]
    empty = sd.embed_text([""]).embeds
    shares = {}
    for scale in GUIDANCE:
        right = 0
        for start in range(0, SAMPLES, 50):
            some = asked[start : start + 50]
            text = sd.embed_text([""], templates=[f"a photo of {with_article(f'{c} {s}')}" for c, s in some])
            told = judge.names(sd.sample(text.embeds, empty, seed=start, guidance=scale))
            right += sum((t["colour"], t["name"]) == wanted for t, wanted in zip(told, some))
        shares[scale] = right / SAMPLES
    return shares


def captioned(index: int) -> tuple[np.ndarray, str]:
    """A picture of one base thing, and a caption of it."""
    rng = np.random.default_rng([SEED, 11, index])
    drawn = scene(rng, IMAGE_SIZE, [SHAPES[index % len(SHAPES)]])
    return drawn.image, caption_of(drawn.things[0], drawn.ground, rng)


def caption_of(thing: Thing, ground: str, rng: np.random.Generator) -> str:
    """A sentence that tells each attribute of a thing or not, and its background; medium and plain are never told."""
    values = {"size": thing.size, "colour": thing.colour, "texture": thing.texture}
    words = [value for name, value in values.items() if value not in ("medium", "plain") and rng.random() < TOLD[name]]
    where = on_ground(ground) if rng.random() < TOLD["background"] else ""
    return str(rng.choice(CAPTIONS)).format(with_article(" ".join([*words, thing.name]))) + where


@torch.no_grad()
def embedded(text: Any, tokenizer: Any, captions: list[str]) -> Tensor:
    """What the text encoder hands over for captions, padded to `TOKENS`: float16 (n, t, d)."""
    ids = tokenizer(captions, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt").input_ids
    return torch.cat([text(some).last_hidden_state.half() for some in ids.split(256)])
