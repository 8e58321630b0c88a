"""Sentences with gaps for searched vectors, as a text encoder's input."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cones.interfaces.texts import Slot

GAP = -1
"""What stands for a searched vector among the ids of words."""


def arranged(word: Sequence[int], n: int, slot: Slot) -> list[int]:
    """The ids of a name with `n` gaps at a slot."""
    match slot:
        case "before":
            return [GAP] * n + [*word]
        case "after":
            return [*word] + [GAP] * n
        case "around":
            return [GAP] * (n // 2) + [*word] + [GAP] * (n - n // 2)
        case "name":
            return [GAP] * n


@dataclass(frozen=True)
class SentenceLayout:
    """Sentences with gaps, one a class: token vectors where words are known, and where the searched ones go; `ends` are
    the places of the last tokens before padding."""

    fixed: Float[Tensor, "c t d"]
    gaps: Int[Tensor, "c n"]
    ends: Int[Tensor, " c"]

    @staticmethod
    def build(sentences: Sequence[Sequence[int]], pad: int, length: int, table: nn.Embedding) -> "SentenceLayout":
        """Lay out sentences of ids and gaps, each with equally many gaps, padded to a length."""
        ids = torch.tensor([[*s, *[pad] * (length - len(s))] for s in sentences])
        gaps = torch.stack([(row == GAP).nonzero()[:, 0] for row in ids])
        ends = torch.tensor([len(s) - 1 for s in sentences])
        device = table.weight.device
        with torch.no_grad():
            fixed = table(ids.clamp(min=0).to(device))
        return SentenceLayout(fixed, gaps.to(device), ends.to(device))

    def filled(self, vectors: Float[Tensor, "*lead n d"]) -> Float[Tensor, "s t d"]:
        """The sentences with vectors in their gaps: C of them, or for vectors (B, 1, n, d) C for each of B images."""
        classes, length, width = self.fixed.shape
        images = vectors.shape[0] if vectors.ndim == 4 else 1
        filling = vectors.expand(images, classes, *vectors.shape[-2:])
        at = self.gaps[None, :, :, None].expand(images, -1, -1, width)
        return self.fixed.expand(images, -1, -1, -1).scatter(2, at, filling).reshape(-1, length, width)
