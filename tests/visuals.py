"""Searching rows of methods that enter the image encoder, or that are told what a CLIP of full size has."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from cones.backbones.clip.clip import Clip
from cones.common.files import write_json
from cones.config.params import parse_method
from cones.config.tables import RunConfig
from cones.features.encoded import Encoded
from cones.interfaces.texts import TextEmbeds
from cones.methods.start import Start
from cones.search.outcome import FoundRow
from cones.search.row import search_row
from cones.tasks.classification.live import live_pictures
from cones.tasks.classification.settings import ClassificationConcept

CONCEPT = ClassificationConcept(task="classification", backbone="toy", data="glyphs", shots=3, views=2)
START = Start(["a", "b"], TextEmbeds.one_per_class(torch.zeros(2, 512)), seed=0)


TABLES = {
    "backbones": {
        "toy": {"kind": "clip", "source": "c"},
        "glip": {"kind": "glip", "source": "g"},
        "sd": {"kind": "sd", "source": "s", "clip": {"source": "c"}, "judge": {"source": "j"}},
    },
    "data": {
        "glyphs": {"kind": "world", "vocabulary": "novel"},
        "scenes": {"kind": "scenes", "vocabulary": "base"},
        "cat": {"kind": "subject", "source": "x"},
    },
    "concepts": {
        "few": {"task": "classification", "backbone": "toy", "data": "glyphs", "shots": 2},
        "found": {"task": "detection", "backbone": "glip", "data": "scenes", "shots": 2},
        "made": {"task": "generation", "backbone": "sd", "data": "cat", "word": "cat"},
    },
}
"""A concept of each family, `few` of CLIP."""


@pytest.fixture
def live(encoded: Encoded) -> Callable:
    return partial(live_pictures, CONCEPT, encoded.folder.parent / "prepared")


@pytest.fixture
def search_few(encoded: Encoded, accelerator, live: Callable) -> Callable[..., FoundRow]:
    """Search a row of some settings."""

    def searched(settings: dict, **more) -> FoundRow:
        run = RunConfig(concept="few", method=parse_method(settings))
        return search_row("row", run, encoded, accelerator, live=live, **more)

    return searched


@pytest.fixture
def vit_b16(tmp_path: Path) -> Clip:
    """A CLIP ViT-B/16 without weights: its configuration says what there is to search on."""
    write_json(tmp_path / "config.json", {"model_type": "clip", "vision_config": {"patch_size": 16}})
    return Clip(tmp_path, logit_scale=100.0)


def trained(settings: dict, vit_b16: Clip) -> int:
    """How many numbers train on it."""
    return sum(p.numel() for p in parse_method(settings).build(vit_b16, START).parameters())


class Stopped(Exception):
    """Stands for a kill."""


def dies_in_step(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search of a CLIP ends at this step, which is counted from 1."""
    objective, steps = Clip.objective, Counter[str]()

    def dying(clip: Clip, settings=None):
        loss = objective(clip, settings)

        def counted(*given):
            steps["done"] += 1
            if steps["done"] == step:
                raise Stopped
            return loss(*given)

        return counted

    monkeypatch.setattr(Clip, "objective", dying)
