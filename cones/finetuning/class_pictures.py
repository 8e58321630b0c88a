"""Pictures that a base model makes of a class word by itself, for a fine-tuning to go on learning."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from cones.common.kept import kept
from cones.features.encoded import Encoded
from cones.interfaces.protocols import Paints

AT_ONCE = 16


def class_latents(
    encoded: Encoded, count: int, device: Any, cache: Path, on_batch: Callable[[int], None] = lambda done: None
) -> dict[str, Tensor]:
    """Latents of `count` such pictures, kept under `cache` for other rows; `on_batch` is told how many were made."""
    from safetensors.torch import load_file, save

    about, made = encoded.about, 0
    how = (about["seed"], about["sampling_steps"], about["guidance"])

    def make(folder: Path) -> None:
        nonlocal made
        backbone = cast(Paints, encoded.backbone(device))
        batches: list[dict[str, Tensor]] = []
        while made < count:
            text = encoded.text.embeds[:1].expand(min(AT_ONCE, count - made), -1, -1)
            pictures = backbone.sample(text, encoded.unconditional, *how, first=made)
            batches.append({n: t.cpu() for n, t in backbone.encode(backbone.pixels(pictures)).items()})
            made += len(pictures)
            on_batch(len(pictures))
        latents = {n: torch.cat([b[n] for b in batches]).contiguous() for n in batches[0]}
        (folder / "latents.safetensors").write_bytes(save(latents))

    facts = [encoded.base.sha256, about["names"], about["templates"][0], count, *how]
    folder = kept("class-pictures", facts, cache, make)
    if not made:
        on_batch(count)
    return load_file(folder / "latents.safetensors")
