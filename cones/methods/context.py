"""Methods at the text encoder's input: zero-shot sentences and CoOp's context tokens."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cones.interfaces.pictures import Features
from cones.interfaces.texts import Prompts, Slot, TextTokens


class ContextTokens(nn.Module):
    """Context tokens shared by all classes, or a set for each: CoOp (Zhou et al. 2022), and prompt tuning on GLIP.

    `context` (n, d), or (classes, n, d), is what is searched; the text encoder runs at every step.
    """

    def __init__(self, context: Float[Tensor, "*classes n d"], slot: Slot = "before") -> None:
        super().__init__()
        self.context = nn.Parameter(context.clone())
        self.slot = slot

    def forward(
        self, names: Sequence[str], features: Features | None = None, generator: torch.Generator | None = None
    ) -> Prompts:
        return Prompts(text_tokens=TextTokens(self.context, self.slot))


def random_context(
    n: int, width: int, classes: int | None, generator: torch.Generator
) -> Float[Tensor, "*classes n d"]:
    """Context tokens from N(0, 0.02): (n, width), or (classes, n, width)."""
    shape = (n, width) if classes is None else (classes, n, width)
    return 0.02 * torch.randn(shape, generator=generator)
