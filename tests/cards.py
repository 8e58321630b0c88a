"""Cards and tensors of sound Concepts of each kind, and what is said of those that are not sound."""

import json
from pathlib import Path
from typing import Any

import torch
from hostile import said
from safetensors.torch import save

from cones.common.errors import ConceptError
from cones.concept.card import CARD_KEY, ConceptCard
from cones.concept.file import Concept
from cones.inference.open import load

HASH, REVISION = "0123456789abcdef" * 4, "0123456789" * 4
NOISE: dict[str, Any] = {"optimiser": "adamw", "lr": 0.1, "epochs": 3, "batch_size": 4, "patience": None}
SHARED: dict[str, Any] = {
    "format": 1, "concept": "cells", "row": "cells-row", "site": "text_embeds", "classes": ["cat", "dog"],
    "names": ["a cat", "a dog"], "templates": ["a {}", "the {}"], "preprocessing": {"mean": [0.5, 0.5], "size": 32},
    "score_threshold": None, "canvas": None, "guidance": None, "sampling_steps": None, "reading": None,
    "finetune": None, "weights_sha256": None, "needs_text_encoder": False, "shots": 4, "seed": 0, "split_hash": HASH,
    "trained_parameters": 8, "val": {"accuracy": 0.5}, "versions": {"torch": "2"}, "tensors_sha256": None,
}  # fmt: skip
CARDS: dict[str, dict[str, Any]] = {
    "clip": SHARED | {
        "task": "classification", "method": {"name": "coop", "n_ctx": 2, **NOISE},
        "base": {"name": "b16", "kind": "clip", "source": "a/b", "revision": REVISION, "sha256": HASH},
    },
    "glip": SHARED | {
        "task": "segmentation", "method": {"name": "cones", "rows": "own", **NOISE}, "canvas": [64, 96],
        "score_threshold": 0.3, "finetune": {"concept": "cells", "from": "row", "kind": "head", "trained_tensors": 1},
        "weights_sha256": HASH,
        "reading": {"window": "lung", "slices": {"stride": 5.0}, "labels": {"1": "cat", "2": "dog"}, "modality": "CT"},
        "base": {"name": "tiny", "kind": "glip", "source": "models/x", "revision": None, "sha256": HASH},
    },
    "sd": SHARED | {
        "task": "generation", "method": {"name": "cones", "rows": "own", "noise": {"copies": 2}, **NOISE},
        "classes": ["zorb"], "names": ["flower"], "guidance": 4.0, "sampling_steps": 30,
        "base": {"name": "sd", "kind": "sd", "source": "models/x", "revision": None, "sha256": HASH},
    },
}  # fmt: skip


def card(kind: str, **changes: Any) -> ConceptCard:
    """That of a sound Concept of a kind, with other values."""
    return ConceptCard.model_validate(CARDS[kind] | changes)


def tensors_of(kind: str) -> dict[str, torch.Tensor]:
    """Those of a sound Concept of a kind, three numbers wide."""
    if kind != "sd":
        return {"text_embeds": torch.ones(2, 3), "owner": torch.arange(2)}
    places = torch.zeros(2, 5, dtype=torch.bool)
    places[:, 1:3] = True
    return {
        "text_embeds": torch.ones(2, 3), "owner": torch.zeros(2, dtype=torch.long), "places": places,
        "sentences": torch.ones(2, 5, 3).half(), "unconditional": torch.ones(1, 5, 3),
    }  # fmt: skip


def loaded(folder: Path, card: Any, tensors: dict[str, torch.Tensor]) -> Concept:
    path = folder / "c.safetensors"
    path.write_bytes(save(tensors, {CARD_KEY: card if isinstance(card, str) else json.dumps(card)}))
    return load(path)


def attempt(folder: Path, card: Any, tensors: dict[str, torch.Tensor]) -> tuple[Concept | None, str]:
    """The Concept, or what is said of one that is not sound."""
    try:
        return loaded(folder, card, tensors), ""
    except ConceptError as error:
        return None, said(error)


def refused(folder: Path, card: Any, tensors: dict[str, torch.Tensor]) -> str:
    """What is said of one that is not sound."""
    read, told = attempt(folder, card, tensors)
    assert read is None
    return told
