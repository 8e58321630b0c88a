"""What a search step costs at the width of Stable Diffusion 1.5, and what kept latents and no text encoder save of it.

    python bench/sd_step.py        writes bench/results/sd_step.json, on a GPU sd_step_gpu.json

The weights are random, on which the time does not depend. A step is one picture of 512 x 512 pixels: loss, gradients
and update. Each kind of step runs in a process of its own, for its peak memory; on a GPU where there is one.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from common import now, write_results
from torch import nn

from cones.backbones.sd.text import GAP, Sentences, encode_sentences
from cones.search.outcome import peak_memory_mb

KINDS = {
    "cones": "ConES on kept latents",
    "cones_sparing": "ConES on kept latents, with gradient checkpointing",
    "inversion_own_rows": "textual inversion on kept latents, with a row of its own",
    "inversion_published": "textual inversion as published: VAE at each step, the whole token table",
}
STEPS = {"cpu": 1, "cuda": 20}
UNET: dict[str, Any] = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 768, "attention_head_dim": 8,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3, "block_out_channels": [320, 640, 1280, 1280],
}  # fmt: skip
VAE: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "max_position_embeddings": 77,
}  # fmt: skip


def frozen(model: Any, device: str) -> Any:
    return model.eval().requires_grad_(False).to(device)


def step_of(kind: str, device: str) -> Callable[[], None]:
    """One optimiser step of a kind, with only the parts in memory that it runs."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = frozen(UNet2DConditionModel(**UNET), device)
    if kind == "cones_sparing":
        unet.enable_gradient_checkpointing()
    latents = torch.randn(1, 4, 64, 64, device=device)
    ids = torch.randint(49_000, (1, 77), device=device)
    if kind.startswith("cones"):
        embeds = torch.randn(1, 77, 768, device=device)
        trained: Any = nn.Parameter(torch.randn(1, 768, device=device))
    else:
        text = frozen(CLIPTextModel(CLIPTextConfig(**TEXT)), device)
        table = text.embeddings.token_embedding
        trained = table.weight if kind == "inversion_published" else nn.Parameter(torch.randn(1, 768, device=device))
        trained.requires_grad_(True)
    if kind == "inversion_published":
        vae, kept = frozen(AutoencoderKL(**VAE), device), table.weight.detach().clone()
        pixels = torch.rand(1, 3, 512, 512, device=device)
    optimiser = torch.optim.AdamW([trained], 1e-3)
    place = torch.zeros(1, 77, 1, dtype=torch.bool, device=device)
    place[0, 5] = True
    owner = place[..., 0].long().cpu() - 1

    def told() -> Any:
        if kind.startswith("cones"):
            return embeds.masked_scatter(place, trained)
        if kind == "inversion_published":
            return text(ids).last_hidden_state
        return encode_sentences(text, Sentences(torch.where(place[..., 0].cpu(), GAP, ids.cpu()), owner), [trained])

    def step() -> None:
        seen = latents
        if kind == "inversion_published":
            with torch.no_grad():
                seen = vae.encode(pixels).latent_dist.sample()
        time_step = torch.randint(1000, (1,), device=device)
        (unet(seen, time_step, told()).sample - latents).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        if kind == "inversion_published":
            with torch.no_grad():
                table.weight[1:] = kept[1:]

    return step


def measure(kind: str) -> None:
    """Print the median seconds of a step after one that warms up, and the most memory the process held."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    step, seconds = step_of(kind, device), []
    for _ in range(STEPS[device] + 1):
        began = now(device)
        step()
        seconds.append(now(device) - began)
    about = {"seconds": round(median(seconds[1:]), 4), "slowest": round(max(seconds[1:]), 4)}
    print(json.dumps(about | {"peak_memory_mb": peak_memory_mb(), "device": device}))


def main() -> None:
    load, found = os.getloadavg()[0], {}
    for kind, said in KINDS.items():
        done = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, kind], stdout=subprocess.PIPE, text=True, check=True
        )
        found[kind] = json.loads(done.stdout.splitlines()[-1])
        print(f"{said}: {found[kind]}", flush=True)
    results = {
        "what": {"pixels": 512, "batch": 1, "threads": torch.get_num_threads()},
        "load_average": {"before": round(load, 2), "after": round(os.getloadavg()[0], 2)},
        "steps": found,
        "published_over_cones": round(found["inversion_published"]["seconds"] / found["cones"]["seconds"], 2),
    }
    write_results("sd_step", results)


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) == 2 else main()
