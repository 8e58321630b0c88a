"""Counts how often base models are opened."""

from collections import Counter

import pytest


@pytest.fixture
def openings(monkeypatch: pytest.MonkeyPatch) -> "Counter[str]":
    """How often base models are hashed, opened, made and parts of them filled with weights, while all of that goes
    on as it does."""
    from transformers import CLIPModel

    from cones.backbones.clip.clip import Clip
    from cones.backbones.glip.glip import Glip
    from cones.backbones.sd.sd import Diffusion
    from cones.tasks import base

    counted: Counter[str] = Counter()

    def count(owner: object, name: str, what: str) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **more: counted.update([what]) or real(*args, **more))

    count(base, "base_hash", "hashed")
    count(base, "open_backbone", "opened")
    for cls in (Clip, Glip, Diffusion):
        count(cls, "__init__", "made")
    for owner, name in ((CLIPModel, "from_pretrained"), (Glip, "_load"), (Diffusion, "_part")):
        count(owner, name, "filled")
    return counted


ONCE = {"hashed": 1, "opened": 1, "made": 1}
"""The same for one opening, but for the parts that are filled."""
