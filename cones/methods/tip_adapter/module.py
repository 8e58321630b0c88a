"""Tip-Adapter and Tip-Adapter-F."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cones.interfaces.pictures import Features, Pictures
from cones.interfaces.protocols import Backbone, DualEncoder
from cones.interfaces.texts import KeyedPictures, Prompts, TextEmbeds
from cones.methods.fitted import features_of, mean_views
from cones.methods.fixed import FixedText
from cones.methods.start import Start
from cones.methods.tip_adapter.settings import Scales

ALPHAS, BETAS, LEAST = 20, 200, 0.1
"""Values of each that are tried, and where they begin."""


def build(
    settings: Scales, backbone: Backbone, start: Start, alpha: float = 1.0, beta: float = 5.5, trained: bool = False
) -> "TipAdapter":
    """One whose keys are the mean views of the training pictures, before alpha and beta are chosen."""
    assert start.images is not None, "a dual encoder's start has its pictures"
    most = (settings.most_alpha, settings.most_beta)
    keys = mean_views(start.images().train)
    return TipAdapter(start.text, *keys, (alpha, beta), most, cast(DualEncoder, backbone).logit_scale, trained)


class TipAdapter(nn.Module):
    """Logits of the text, and those of the training pictures beside them (Zhang et al. 2022, section 3.1).

    `keys` (N, d) of the classes `labels` (N,) are the parameters if they are `trained`. `scale` is alpha and beta,
    which are chosen from 0.1 up to `most`.
    """

    def __init__(
        self,
        text: TextEmbeds,
        keys: Float[Tensor, "n d"],
        labels: Int[Tensor, " n"],
        scale: tuple[float, float],
        most: tuple[float, float],
        logit_scale: float,
        trained: bool,
    ) -> None:
        super().__init__()
        self.text, self.most, self.logit_scale = FixedText(text), most, logit_scale
        if trained:
            self.keys = nn.Parameter(keys)
        else:
            self.register_buffer("keys", keys)
        self.register_buffer("labels", labels)
        self.register_buffer("scale", torch.tensor(scale))

    def forward(
        self, names: Sequence[str], features: Features | None = None, generator: torch.Generator | None = None
    ) -> Prompts:
        text = self.text(names).text_embeds
        return Prompts(text_embeds=replace(text, pictures=KeyedPictures(self.keys, self.labels, self.scale)))

    @torch.no_grad()
    def fit(self, train: Pictures, val: Pictures) -> int:
        """Choose alpha and beta by the accuracy on validation, and by the loss among those of one accuracy; without
        validation they stay as they are."""
        if not len(val):
            return 0
        features, labels = features_of(val, device=self.keys.device)
        text = F.normalize(self.text([]).text_embeds.embeds[0], dim=-1)
        told = self.logit_scale * features @ text.T
        distance = 1 - features @ self.keys.T
        alphas, betas = (steps_to(most, n).to(told) for most, n in zip(self.most, (ALPHAS, BETAS)))
        best = (-1.0, -torch.inf)
        for beta in betas:
            near = torch.zeros_like(told).index_add_(1, self.labels, torch.exp(-beta * distance))
            for alpha in alphas:
                logits = told + alpha * near
                hit = float((logits.argmax(1) == labels).float().mean())
                if hit < best[0]:
                    continue
                score = hit, -float(F.cross_entropy(logits, labels))
                if score > best:
                    best = score
                    self.scale.copy_(torch.stack([alpha, beta]))
        return 0


def steps_to(most: float, count: int) -> Float[Tensor, " n"]:
    """Values from `LEAST` on, evenly, `most` not among them, as its released code has them."""
    return LEAST + torch.arange(count) * ((most - LEAST) / count)
