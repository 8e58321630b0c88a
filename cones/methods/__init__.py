"""The only door to methods: build one from its settings and what is known before a search starts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cones.config import Cones as ConesSettings
from cones.config import CoOp as CoOpSettings
from cones.config import ZeroShot as ZeroShotSettings
from cones.methods.concept import Cones, class_means, start_embeddings
from cones.methods.text import CoOp, ZeroShot, random_context
from cones.types import Backbone, Slot

__all__ = ["Start", "build", "class_means"]

SLOTS: dict[str, Slot] = {"end": "before", "middle": "around", "front": "after"}


@dataclass(frozen=True)
class Start:
    """What a search may start from: the text encoder's word for each class (C, d), the mean image feature of each
    class's training pictures (C, d), and the validation loss of class embeddings."""

    names: Sequence[str]
    text: Float[Tensor, "c d"]
    images: Float[Tensor, "c d"]
    loss_of: Callable[[Tensor], float]
    seed: int


def build(settings: ZeroShotSettings | CoOpSettings | ConesSettings, backbone: Backbone, start: Start) -> nn.Module:
    """A method ready to search; its parameters are exactly what is searched."""
    generator = torch.Generator().manual_seed(start.seed)
    match settings:
        case ZeroShotSettings():
            return ZeroShot(start.text)
        case CoOpSettings():
            return CoOp(_context(settings, backbone, len(start.names), generator), SLOTS[settings.class_token_position])
        case ConesSettings():
            return Cones(start_embeddings(settings.init, start.text, start.images, start.loss_of, generator))


def _context(settings: CoOpSettings, backbone: Backbone, classes: int, generator: torch.Generator) -> Tensor:
    if settings.ctx_init is not None:
        words = backbone.word_vectors(settings.ctx_init)
        return words.expand(classes, -1, -1) if settings.class_specific else words
    width = backbone.sites["text_tokens"].width
    return random_context(settings.n_ctx, width, classes if settings.class_specific else None, generator)
