"""Context tokens at the text encoder's input: CoOp's, and those of prompt tuning."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cones.interfaces.pictures import Features
from cones.interfaces.protocols import Backbone
from cones.interfaces.texts import Prompts, Slot, TextTokens
from cones.methods.start import Start


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


@runtime_checkable
class ContextSettings(Protocol):
    """What the settings of a method with context tokens say of them."""

    @property
    def n_ctx(self) -> int: ...

    @property
    def ctx_init(self) -> str | None: ...

    @property
    def class_specific(self) -> bool: ...


def start_context(settings: ContextSettings, backbone: Backbone, start: Start) -> Float[Tensor, "*classes n d"]:
    """The context that a search starts from: that of some words, or noise."""
    classes = len(start.names)
    if settings.ctx_init is not None:
        words = backbone.word_vectors(settings.ctx_init)
        return words.expand(classes, -1, -1) if settings.class_specific else words
    width = backbone.sites["text_tokens"].width
    return random_context(settings.n_ctx, width, classes if settings.class_specific else None, start.generator)
