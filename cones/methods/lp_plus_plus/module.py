"""LP++."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from cones.interfaces.pictures import Features, Pictures
from cones.interfaces.texts import Prompts, TextEmbeds
from cones.methods.fitted import all_views
from cones.methods.fixed import FixedText

MOMENTUM, EVERY, FIRST_SCALE = 0.9, 10, 250.0
"""Of the prototypes' steps; steps to one of the multipliers; what their mean similarity is multiplied by at first."""


class LpPlusPlus(nn.Module):
    """Logits x (w + alpha t) of the classes (Huang et al. 2024, eq. 3): `prototypes` w (C, d), `multipliers` alpha
    (C,), and the text t (C, d); pictures x and texts have unit length."""

    def __init__(self, text: TextEmbeds, steps: int) -> None:
        super().__init__()
        self.text, self.steps = FixedText(text), steps
        self.prototypes = nn.Parameter(torch.zeros_like(text.embeds[0]))
        self.multipliers = nn.Parameter(torch.zeros(len(self.prototypes)))

    def forward(
        self, names: Sequence[str], features: Features | None = None, generator: torch.Generator | None = None
    ) -> Prompts:
        text = self.text(names).text_embeds
        unit = F.normalize(text.embeds, dim=-1)
        weight = self.prototypes + self.multipliers[:, None] * unit
        return Prompts(text_embeds=replace(text, embeds=weight, bias=torch.zeros_like(self.multipliers)))

    def fit(self, train: Pictures, val: Pictures) -> int:
        """Descend on the cross entropy of the training pictures in all their views; the steps taken."""
        with torch.enable_grad():
            self._descend(*all_views(train, self.prototypes.device), train.views)
        return self.steps

    def _descend(self, features: torch.Tensor, labels: torch.Tensor, views: int) -> None:
        unit = F.normalize(self.text([]).text_embeds.embeds[0], dim=-1)
        similar = features @ unit.T
        with torch.no_grad():
            count = torch.bincount(labels, minlength=len(unit))
            own = torch.zeros(len(unit), device=similar.device).index_add_(
                0, labels, similar.gather(1, labels[:, None])[:, 0]
            )
            self.prototypes.zero_().index_add_(0, labels, features).div_(views)
            self.multipliers.fill_(FIRST_SCALE * float((own / count).mean()))
            largest = torch.linalg.matrix_norm(features, 2) ** 2
            rate = float(4 * len(features) / largest)
            multiplier_rate = float(len(features) / (4 * similar.square().sum(0).max()))
        optimiser = torch.optim.SGD([self.prototypes], rate, momentum=MOMENTUM)
        for step in range(1, self.steps + 1):
            logits = features @ self.prototypes.T + self.multipliers * similar
            loss = F.cross_entropy(logits, labels)
            by_prototypes, by_multipliers = torch.autograd.grad(loss, [self.prototypes, self.multipliers])
            self.prototypes.grad = by_prototypes
            optimiser.step()
            if step % EVERY == 0:
                with torch.no_grad():
                    self.multipliers.sub_(multiplier_rate * by_multipliers)
        self.prototypes.grad = None
