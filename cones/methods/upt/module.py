"""Unified Prompt Tuning (UPT): text and visual prompts made together."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cones.interfaces.pictures import Features
from cones.interfaces.texts import Prompts, Slot, TextTokens

Made = tuple[Float[Tensor, "n t"], Float[Tensor, "m v"]]
"""The text's prompts, and those of all layers of the image encoder one after the other."""


class UPT(nn.Module):
    """UPT (Zang et al. 2022, arXiv 2210.07225): `makes` gives the prompts of both sites, and is what is searched.

    The text gets n of them, each layer of the image encoder that takes some as many.
    """

    def __init__(self, makes: nn.Module, n: int, slot: Slot) -> None:
        super().__init__()
        self.makes, self.n, self.slot = makes, n, slot

    def forward(
        self, names: Sequence[str], features: Features | None = None, generator: torch.Generator | None = None
    ) -> Prompts:
        text, visual = self.makes()
        return Prompts(TextTokens(text, self.slot), visual_tokens=visual.unflatten(0, (-1, self.n)))


class OneTable(nn.Module):
    """Both sites' prompts from one table (k, d) of the text's width, as `block` makes them: the first n are the text's,
    the last m the image encoder's, there by a linear map where it has another width. k is n + m, or m for the same ones
    in both."""

    def __init__(self, prompts: Float[Tensor, "k d"], block: nn.Module, n: int, m: int, width: int) -> None:
        super().__init__()
        self.prompts, self.block = nn.Parameter(prompts), block
        self.to_visual = between(prompts.shape[1], width)
        self.n, self.m = n, m

    def forward(self) -> Made:
        made = self.block(self.prompts)
        return made[: self.n], self.to_visual(made[-self.m :])


class TwoTables(nn.Module):
    """A table for each site, (n, t) and (m, v); between them `block` at a width of its own, or nothing."""

    def __init__(
        self, text: Float[Tensor, "n t"], visual: Float[Tensor, "m v"], block: nn.Module | None, width: int
    ) -> None:
        super().__init__()
        self.text, self.visual, self.block = nn.Parameter(text), nn.Parameter(visual), block
        if block is not None:
            widths = (text.shape[1], visual.shape[1])
            self.into = nn.ModuleList(between(w, width) for w in widths)
            self.back = nn.ModuleList(between(width, w) for w in widths)

    def forward(self) -> Made:
        if self.block is None:
            return self.text, self.visual
        made = self.block(torch.cat([self.into[0](self.text), self.into[1](self.visual)]))
        return self.back[0](made[: len(self.text)]), self.back[1](made[len(self.text) :])


def between(width: int, other: int) -> nn.Module:
    """A linear map from a width to another one; nothing where they are the same."""
    return nn.Identity() if width == other else nn.Linear(width, other)
