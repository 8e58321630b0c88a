"""Could a method be advised from cached features alone? Each data set is left out in turn, and rules that know the
others say which method would be best on it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.linear_model import Ridge
from torch import Tensor
from torch.nn import functional as F

ALPHA, BETA, WEIGHT = 1.0, 5.5, 1.0
"""Tip-Adapter's as published; the penalty of the least squares."""
VARIANCES, ALONE = ("visual_variance", "text_variance"), ("zero_shot", "class_means", "blend", "tip_adapter", "squares")
NEAR = 0.005
"""Below the best by at most this accuracy counts as as good."""


def leave_one_out(
    features: Float[Tensor, "n d"], labels: Int[Tensor, " n"], text: Float[Tensor, "c d"], logit_scale: float
) -> dict[str, float]:
    """Accuracy on each training picture of what the others say of it: zero-shot, the nearest class mean, that mean
    blended with the text, Tip-Adapter without a search, and regularised least squares. No search, no encoder."""
    x, t = F.normalize(features.double(), dim=-1), F.normalize(text.double(), dim=-1)
    one = F.one_hot(labels, len(t)).double()
    told, near = x @ t.T, x @ x.T
    count = one.sum(0) - one  # of each class without the picture itself
    sums = one.T @ x
    means = F.normalize((sums - one[:, :, None] * x[:, None]) / count.clamp(min=1)[:, :, None], dim=-1)
    similar = torch.einsum("nd,ncd->nc", x, means)
    keys = torch.exp(-BETA * (1 - near))
    keys.fill_diagonal_(0)
    hat = near @ torch.linalg.inv(near + WEIGHT * torch.eye(len(x), dtype=x.dtype))
    fitted = hat @ one
    own = torch.diagonal(hat)[:, None]
    scores = {
        "zero_shot": told,
        "class_means": similar,
        "blend": told + similar,
        "tip_adapter": logit_scale * told + ALPHA * keys @ one,
        "squares": (fitted - own * one) / (1 - own),
    }
    return {name: float((of.argmax(1) == labels).double().mean()) for name, of in scores.items()}


def advice(sets: Mapping[str, Any]) -> dict[str, Any]:
    """Of each rule: how often it names the best method, or one within `NEAR` of it, and its mean regret in accuracy."""
    methods = list(next(iter(sets.values()))["test_accuracy"])
    accuracy = np.array([[of["test_accuracy"][m]["mean"] for m in methods] for of in sets.values()])
    facts = {name: _scaled(sets, of) for name, of in FACTS.items()}
    rules: dict[str, Callable[[int, np.ndarray], int]] = {
        "always the best on average": lambda i, rest: int(accuracy[rest].mean(0).argmax())
    }
    for name, of in facts.items():
        rules[f"as the nearest data set by {name}"] = lambda i, rest, of=of: _nearest(of, accuracy, i, rest, 1)
        rules[f"as the three nearest by {name}"] = lambda i, rest, of=of: _nearest(of, accuracy, i, rest, 3)
        rules[f"by a linear forecast from {name}"] = lambda i, rest, of=of: int(
            Ridge(1.0).fit(of[rest], accuracy[rest]).predict(of[i : i + 1])[0].argmax()
        )
    found = {name: _judged(rule, accuracy, methods) for name, rule in rules.items()}
    best = {name: [methods[j] for j in np.flatnonzero(row >= row.max() - NEAR)] for name, row in zip(sets, accuracy)}
    mean = {m: round(float(a), 4) for m, a in zip(methods, accuracy.mean(0))}
    return {"mean_accuracy": mean, "best": best, "rules": found}


FACTS = {"both variances": VARIANCES, "leave-one-out": ALONE, "all": (*VARIANCES, *ALONE)}
"""What a rule knows of a data set, all of it from its training features."""


def _scaled(sets: Mapping[str, Any], facts: Sequence[str]) -> np.ndarray:
    known = np.array([[of["of_training"].get(f, of.get(f)) for f in facts] for of in sets.values()])
    return (known - known.mean(0)) / np.maximum(known.std(0), 1e-9)


def _nearest(facts: np.ndarray, accuracy: np.ndarray, i: int, rest: np.ndarray, count: int) -> int:
    near = rest[np.argsort(((facts[rest] - facts[i]) ** 2).sum(1), kind="stable")[:count]]
    return int(accuracy[near].mean(0).argmax())


def _judged(rule: Callable[[int, np.ndarray], int], accuracy: np.ndarray, methods: Sequence[str]) -> dict[str, Any]:
    every = np.arange(len(accuracy))
    chosen = [rule(i, np.delete(every, i)) for i in every]
    regret = accuracy.max(1) - accuracy[every, chosen]
    return {
        "hits": int((regret < 1e-9).sum()),
        "nearly": int((regret <= NEAR).sum()),
        "mean_regret": round(float(regret.mean()), 4),
        "largest_regret": round(float(regret.max()), 4),
        "chosen": [methods[j] for j in chosen],
    }
