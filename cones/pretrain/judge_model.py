"""`judge-tiny`: a small ResNet that names a thing's shape, colour and texture; its features say how alike pictures are.

It takes DINO's role. It is trained by itself, on labels rather than captions: it shares neither weights nor seed nor
objective with the models it judges.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.nn import functional as F

SIDE = 64
CONFIG: dict[str, Any] = {
    "embedding_size": 32,
    "hidden_sizes": [32, 64, 128, 192],
    "depths": [1, 2, 2, 1],
    "layer_type": "basic",
    "downsample_in_first_stage": False,
}
PROCESSOR: dict[str, Any] = {
    "size": {"height": SIDE, "width": SIDE},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def judge_model(values: Mapping[str, Sequence[str]]) -> Any:
    """A `ResNetForImageClassification` with a label for each value of each attribute, as `shape: circle`."""
    from transformers import ResNetConfig, ResNetForImageClassification

    labels = [f"{attribute}: {value}" for attribute, of in values.items() for value in of]
    return ResNetForImageClassification(ResNetConfig(**CONFIG, id2label=dict(enumerate(labels))))


def normalised(images: UInt8[Tensor, "n 3 h w"]) -> Tensor:
    mean, std = (torch.tensor(PROCESSOR[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
    return (images.float() / 255 - mean) / std


def train_judge(
    model: Any,
    images: UInt8[Tensor, "n 3 h w"],
    labels: Int[Tensor, "n a"],
    sizes: Sequence[int],
    steps: int,
    seed: int,
    on_step: Callable[[int, float], None],
) -> None:
    """Train a judge in place: cross-entropy of each attribute, of which there are `sizes` values."""
    rate = 2e-3
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    model.to(memory_format=torch.channels_last).train()
    for step in range(steps):
        rows = torch.randint(len(images), (64,), generator=generator)
        pixels = normalised(images[rows])
        if step % 2:
            pixels = pixels.flip(-1)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(pixels.contiguous(memory_format=torch.channels_last)).logits.float()
        told = zip(logits.split(list(sizes), 1), labels[rows].unbind(1))
        loss = torch.stack([F.cross_entropy(guess, truth) for guess, truth in told]).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        on_step(step, loss.item())
    model.to(memory_format=torch.contiguous_format).eval()


def write_judge(model: Any, folder: Path) -> None:
    """Save a judge and its processor in their libraries' layout, the weights as float16."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    model.half().save_pretrained(folder)
    ViTImageProcessorPil(**PROCESSOR).save_pretrained(folder)
