"""What a search may start from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from cones.interfaces.pictures import Pictures
from cones.interfaces.texts import TextEmbeds


@dataclass(frozen=True)
class ImageStart:
    """What the pictures say of classes before a search: the mean feature of each class's training pictures (C, d), the
    validation loss of class embeddings (C, d), and the training pictures."""

    means: Float[Tensor, "c d"]
    loss_of: Callable[[Tensor], float]
    train: Pictures


@dataclass(frozen=True)
class Start:
    """What a search may start from: the text encoder's output for the class names in templates, and the pictures.

    On a dual encoder `images` tells them; on a diffusion model `pictured` gives what they predict of some rows (n, d)
    of the encoder's output for a template: the concept's `own`, `all`, or the last so many. Both are made when asked
    for.
    """

    names: Sequence[str]
    text: TextEmbeds
    seed: int
    templates: Sequence[str] = ("{}",)
    images: Callable[[], ImageStart] | None = None
    pictured: Callable[[str | int], Tensor] | None = None

    @property
    def generator(self) -> torch.Generator:
        """A fresh one of the seed."""
        return torch.Generator().manual_seed(self.seed)

    @property
    def in_sentences(self) -> bool:
        """Whether `text` is that of templates with the class word, and not of a class or a caption."""
        return self.text.owner.ndim == 2


def class_means(features: Float[Tensor, "n d"], labels: Int[Tensor, " n"], classes: int) -> Float[Tensor, "c d"]:
    """The mean direction of each class's features."""
    sums = torch.zeros(classes, features.shape[1]).index_add_(0, labels, F.normalize(features, dim=-1))
    return F.normalize(sums, dim=-1)
