"""`sd-tiny`: a real Stable Diffusion at toy width for 64-pixel pictures, trained from scratch on the generated world.

An autoencoder first, then a UNet on its latents (Rombach et al. 2022). The text encoder is that of `clip-tiny`, frozen,
as Stable Diffusion's is CLIP's.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

IMAGE_SIZE, LATENT_CHANNELS, TOKENS = 64, 8, 32
VAE: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [16, 32, 48, 64],
    "layers_per_block": 1,
    "latent_channels": LATENT_CHANNELS,
    "norm_num_groups": 8,
    "sample_size": IMAGE_SIZE,
}
UNET: dict[str, Any] = {
    "sample_size": IMAGE_SIZE // 8,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [64, 80],
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "attention_head_dim": 4,
}
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""Stable Diffusion 1.5's."""
KL_WEIGHT, EDGE_WEIGHT = 1e-6, 1.0
UNCONDITIONAL = 0.1
"""Share of captions that are left empty, for classifier-free guidance (Ho and Salimans 2022)."""
MIN_SNR = 5.0
"""Gamma of min-SNR weighting (Hang et al. 2023)."""
EMA = 0.999

OnStep = Callable[[int, float], None]


def new_parts(text_width: int) -> tuple[Any, Any, Any]:
    """An autoencoder and a UNet with random weights, and the noise schedule."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    return AutoencoderKL(**VAE), UNet2DConditionModel(**UNET, cross_attention_dim=text_width), DDIMScheduler(**SCHEDULE)


def text_parts(clip: Path) -> tuple[Any, Any]:
    """The text encoder and the tokenizer of a CLIP's folder, as a `CLIPTextModel` and one for `TOKENS` tokens."""
    from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

    whole = CLIPModel.from_pretrained(clip, dtype=torch.float32)
    text = CLIPTextModel(whole.config.text_config).eval().requires_grad_(False)
    text.load_state_dict(whole.text_model.state_dict())
    return text, CLIPTokenizer.from_pretrained(clip, model_max_length=TOKENS)


def train_autoencoder(vae: Any, draw: Callable[[int], Float[Tensor, "b 3 h w"]], steps: int, on_step: OnStep) -> None:
    """Train an `AutoencoderKL` in place on pictures in [-1, 1]: absolute error of pixels and of their differences."""
    rate = 2e-3
    optimiser = torch.optim.AdamW(vae.parameters(), rate, betas=(0.9, 0.99), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    vae.train()
    for step in range(steps):
        pixels = draw(step)
        with torch.autocast("cpu", torch.bfloat16):
            latent = vae.encode(pixels).latent_dist
            seen = vae.decode(latent.sample()).sample.float()
        loss = F.l1_loss(seen, pixels) + EDGE_WEIGHT * _edges(seen, pixels) + KL_WEIGHT * latent.kl().float().mean()
        _update(loss, vae, optimiser, schedule)
        on_step(step, loss.item())
    vae.eval().requires_grad_(False)


def _edges(a: Tensor, b: Tensor) -> Tensor:
    return F.l1_loss(a.diff(dim=-1), b.diff(dim=-1)) + F.l1_loss(a.diff(dim=-2), b.diff(dim=-2))


def _update(loss: Tensor, model: nn.Module, optimiser: Any, schedule: Any) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    schedule.step()


@torch.no_grad()
def latents_of(vae: Any, images: UInt8[Tensor, "n 3 h w"], batch: int = 64) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (n, c, h, w) of the latents of pictures, as float16.

    What the latents must be multiplied by to have unit variance is written into the autoencoder's configuration.
    """
    found = [vae.encode(some.float() / 127.5 - 1).latent_dist for some in images.split(batch)]
    means = torch.cat([latent.mean.half() for latent in found])
    stds = torch.cat([latent.std.half() for latent in found])
    vae.register_to_config(scaling_factor=round(1 / float(means.float().std()), 5))
    return means, stds


def train_unet(
    unet: Any, scheduler: Any, draw: Callable[[int], tuple[Tensor, Tensor]], steps: int, on_step: OnStep
) -> Any:
    """Train a UNet on noise prediction; `draw(step)` gives scaled latents and the text encoder's output (b, t, d).

    Returns the mean of its weights over the last thousand steps or so (EMA), which samples better.
    """
    rate = 2e-3
    optimiser = torch.optim.AdamW(unet.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, total_steps=steps, pct_start=0.05, cycle_momentum=False
    )
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    weights = snr.clamp(max=MIN_SNR) / snr
    mean = copy.deepcopy(unet).requires_grad_(False)
    unet.to(memory_format=torch.channels_last).train()
    for step in range(steps):
        latents, text = draw(step)
        noise, times = torch.randn_like(latents), torch.randint(len(snr), (len(latents),))
        told = unet(scheduler.add_noise(latents, noise, times), times, text).sample
        errors = F.mse_loss(told, noise, reduction="none").mean((1, 2, 3))
        loss = (errors * weights[times]).mean()
        _update(loss, unet, optimiser, schedule)
        share = min(EMA, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(mean.parameters()), list(unet.parameters()), 1 - share)
        on_step(step, loss.item())
    return mean.eval()


def write_pipeline(folder: Path, vae: Any, unet: Any, text: Any, tokenizer: Any, scheduler: Any) -> None:
    """Save a `StableDiffusionPipeline` in its own layout, its weights as float16."""
    from diffusers import StableDiffusionPipeline

    parts = {"vae": vae.half(), "unet": unet.half(), "text_encoder": text.half()}
    pipeline: Any = StableDiffusionPipeline(
        **parts, tokenizer=tokenizer, scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
