"""Fine-tuning: weights of the base model that train, each by its name, and low-rank additions to them."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

KIND_PARTS = {
    "head": ("bbox_head", "mask_head"),
    "full": ("backbone", "neck", "bbox_head", "mask_head"),
    "mask_head": ("mask_head",),
}
"""The parts of a detector whose parameters all train, by the kind of fine-tuning; a part that is not there is left out.
`lora` trains additions to the linear layers of `bbox_head`."""
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""The linear layers of a Stable Diffusion's attention, by the ends of their names, which LoRA adds to."""
LORA_SCALE = 1.0
"""Of the additions: LoRA's alpha over its rank, which are set equal."""


class Trained(nn.Module):
    """Exactly what a fine-tuning trains, and the losses since the last validation.

    `weights` by their names, and `embeds` (n, d) of the prompt if they go on training, are the model's own parameters:
    a step or a state loaded here is in the model at once.
    """

    def __init__(
        self, weights: Mapping[str, nn.Parameter], embeds: Float[nn.Parameter, "n d"] | None, validate_every: int
    ) -> None:
        super().__init__()
        self.names = list(weights)
        self.weights = nn.ParameterList(weights.values())
        self.embeds = embeds
        self.register_buffer("losses", torch.zeros(validate_every))
        self.requires_grad_(True)

    @property
    def count(self) -> int:
        """How many numbers train."""
        return sum(p.numel() for p in self.parameters())

    def tensors(self) -> dict[str, Tensor]:
        """The weights by their names, as they are now."""
        return {n: p.detach().cpu().contiguous() for n, p in zip(self.names, self.weights)}

    def copy(self) -> dict[str, Tensor]:
        """All parameters as they are now, to be put back by `restore`."""
        return {n: p.detach().clone() for n, p in self.named_parameters()}

    @torch.no_grad()
    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Put the parameters back to what `copy` gave."""
        for name, parameter in self.named_parameters():
            parameter.copy_(kept[name])


def parameters_of(parts: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Every parameter of some parts by its name in the whole model; running means and other buffers are none."""
    return {f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()}


def attention_layers(unet: nn.Module) -> list[str]:
    """The names of a UNet's attention layers that LoRA adds to (Ruiz et al. 2023 with Hu et al. 2021)."""
    return [
        n
        for n, m in unet.named_modules()
        if isinstance(m, nn.Linear) and f".{n}".endswith(tuple(f".{e}" for e in ATTENTION))
    ]


def add_lora(
    part: str, module: nn.Module, rank: int, seed: int, layers: Sequence[str] | None = None
) -> dict[str, nn.Parameter]:
    """Add B A to the weight of every linear layer of a part, or of some, in place (Hu et al. 2021, LoRA, section 4.1).

    Gives A (rank, in), random from the seed, and B (out, rank), zero, as `<weight>.lora_A` and `<weight>.lora_B`: for
    each layer rank x (in + out) numbers. Everything else in the part stops training.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if layers is None:
        layers = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    config = LoraConfig(r=rank, lora_alpha=int(LORA_SCALE * rank), target_modules=list(layers))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, module).train(module.training)
    added: dict[str, nn.Parameter] = {}
    for name in layers:
        layer = module.get_submodule(name)
        for side in ("lora_A", "lora_B"):
            added[f"{part}.{name}.weight.{side}"] = getattr(layer, side)["default"].weight
    trains = sum(p.requires_grad for p in module.parameters())
    # peft takes the names for endings of names, and so could have met others as well.
    assert trains == len(added) == 2 * len(layers), f"LoRA trains {trains} tensors of {2 * len(layers)}"
    return added
