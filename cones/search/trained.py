"""Fine-tuning: weights of the base model that train, each by its name, and low-rank additions to them."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn


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
