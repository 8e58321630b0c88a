"""The linear probe, by scikit-learn."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from cones.interfaces.pictures import Features, Pictures
from cones.interfaces.texts import Prompts, TextEmbeds
from cones.methods.fitted import all_views, features_of
from cones.methods.fixed import FixedText

COARSE = (6.0, 4.0, 2.0, 0.0, -2.0, -4.0, -6.0)
"""Powers of ten of the strengths that are tried first; the inverse of the regularisation, as scikit-learn has it."""


class LinearProbe(nn.Module):
    """A linear classifier on image features: `weight` (C, d) and `bias` (C,), which are 0 until they are fitted."""

    def __init__(self, text: TextEmbeds, refinements: int, iterations: int) -> None:
        super().__init__()
        self.text, self.refinements, self.iterations = FixedText(text), refinements, iterations
        self.weight = nn.Parameter(torch.zeros_like(text.embeds[0]))
        self.bias = nn.Parameter(torch.zeros(len(self.weight)))

    def forward(
        self, names: Sequence[str], features: Features | None = None, generator: torch.Generator | None = None
    ) -> Prompts:
        text = self.text(names).text_embeds
        return Prompts(text_embeds=replace(text, embeds=self.weight[None], bias=self.bias))

    @torch.no_grad()
    def fit(self, train: Pictures, val: Pictures) -> int:
        """Fit it with each strength and keep what is best on validation; the iterations of all."""
        shown, held = (tuple(t.numpy() for t in found) for found in (all_views(train), features_of(val)))
        tried: dict[float, tuple[tuple[float, float], Any]] = {}

        def score(power: float) -> tuple[float, float]:
            if power not in tried:
                probe = self._probe(10**power, *shown)
                tried[power] = _scores(probe, *held), probe
            return tried[power][0]

        if len(self.bias) < 2:
            return 0
        peak = max(COARSE, key=score)
        low, high = peak - 1, peak + 1
        for _ in range(self.refinements):
            middle = (low + high) / 2
            low, high = (middle, high) if score(low) < score(high) else (low, middle)
        _, best = max(tried.values(), key=lambda one: one[0])
        weight, bias = torch.from_numpy(best.coef_), torch.from_numpy(best.intercept_)
        if len(weight) == 1:  # of two classes, the second one's
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        return sum(int(probe.n_iter_.max()) for _, probe in tried.values())

    def _probe(self, strength: float, features: np.ndarray, labels: np.ndarray) -> Any:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # of strengths that validation does not choose
            return LogisticRegression(C=strength, max_iter=self.iterations).fit(features, labels)


def _scores(probe: Any, features: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Its accuracy, and minus its loss, by which equal ones are told apart."""
    likely = np.clip(probe.predict_proba(features), np.finfo(float).tiny, 1)
    return float((likely.argmax(1) == labels).mean()), float(np.log(likely[np.arange(len(labels)), labels]).mean())
