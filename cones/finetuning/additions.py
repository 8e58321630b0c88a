"""Low-rank additions to linear layers (Hu et al. 2021), by peft."""

from collections.abc import Sequence

import torch
from torch import nn

LORA_SCALE = 1.0
"""Of the additions: LoRA's alpha over its rank, which are set equal."""


def add_lora(
    part: str,
    module: nn.Module,
    rank: int,
    seed: int,
    layers: Sequence[str] | None = None,
    scale: float = LORA_SCALE,
    dropout: float = 0.0,
) -> dict[str, nn.Parameter]:
    """Add B A times `scale` to the weight of every linear layer of a part, or of some, in place (Hu et al. 2021, LoRA,
    section 4.1); `dropout` of its inputs are left out while the layer is in training mode. An empty `part` is all.

    Gives A (rank, in), random from the seed, and B (out, rank), zero, as `<weight>.lora_A` and `<weight>.lora_B`: for
    each layer rank x (in + out) numbers. Everything else in the part stops training.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if layers is None:
        layers = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    config = LoraConfig(r=rank, lora_alpha=1, target_modules=list(layers), lora_dropout=dropout)
    config.lora_alpha = scale * rank  # type: ignore[assignment]  # any number is
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, module).train(module.training)
    added: dict[str, nn.Parameter] = {}
    start = f"{part}." if part else ""
    for name in layers:
        layer = module.get_submodule(name)
        for side in ("lora_A", "lora_B"):
            added[f"{start}{name}.weight.{side}"] = getattr(layer, side)["default"].weight
    trains = sum(p.requires_grad for p in module.parameters())
    # peft takes the names for endings of names, and so could have met others as well.
    assert trains == len(added) == 2 * len(layers), f"LoRA trains {trains} tensors of {2 * len(layers)}"
    return added
