"""The pictures of a study: encoded once, and divided among its cells."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cones.backbones.hub import base_hash, locate
from cones.backbones.settings import BackboneConfig
from cones.common.files import content_hash
from cones.common.kept import kept
from cones.data.prepared import Split, records_hash
from cones.features.draw import Drawn
from cones.features.encoded import Encoded
from cones.features.store import FeatureStore
from cones.interfaces.protocols import Backbone
from cones.study.settings import Draws
from cones.tasks.encode import draw, encode_concept
from cones.tasks.parts import part_of

ENCODED, TEST = "encoded", "test"


@dataclass(frozen=True)
class CellPictures(Encoded):
    """What a cell is searched on; all cells of a study share one opened base model."""

    opened: Backbone | None = None

    def backbone(self, device: Any = "cpu", task: str | None = None) -> Backbone:
        """The study's, its calls of the text encoder counted anew."""
        assert self.opened is not None, "a cell is given its base model"
        self.opened.text_encoder_calls = 0
        return self.opened


@dataclass(frozen=True)
class StudyPictures:
    """All pictures that a study draws, encoded, and those that it tests on."""

    draws: Draws
    data: Path
    every: Encoded
    test: FeatureStore
    opened: Backbone

    def cell(self, shots: int, seed: int) -> CellPictures:
        """The pictures of one draw. `DataError` if a class has fewer than `shots`."""
        drawn, every = draw(self.draws.concept(shots, seed), self.data), self.every
        train, val = _some(every.train, drawn.train, drawn.shown), _some(every.val, drawn.val, drawn.held)
        about = {**every.about, "shots": shots, "seed": seed, "split_hash": content_hash(drawn.hashes),
                 "val_hash": drawn.hashes["val"]}  # fmt: skip
        return CellPictures(every.folder, about, train, val, every.text, opened=self.opened)


def _some(store: FeatureStore, split: Split, indices: Sequence[int]) -> FeatureStore:
    """The pictures of a store that have these indices in their split."""
    places = {name: i for i, name in enumerate(store.ids)}
    return store.at([places[split.records[i].id] for i in indices])


def encode_study(
    draws: Draws, config: BackboneConfig, data: Path, cache: Path, device: Any, on_batch: Callable[[int], None]
) -> StudyPictures:
    """Encode what the draws of all seeds see together, each picture once, and the test pictures; or take what is kept
    of that. `DataError` if a class has fewer pictures than the most shots."""
    concept = draws.concept(max(draws.shots), 0)
    of_seeds = [draw(draws.concept(max(draws.shots), seed), data) for seed in range(1, draws.seeds + 1)]
    of_seeds += [draw(draws.concept(shots, seed), data) for shots in draws.shots for seed in range(1, draws.seeds + 1)]
    first = of_seeds[0]
    shown, held = (sorted({i for of in of_seeds for i in getattr(of, name)}) for name in ("shown", "held"))
    union = Drawn(first.train, shown, first.val, held, first.names, draws.views)
    test = Split.open(data / "test")
    folder = locate(config.source, config.revision)
    facts = [base_hash(folder), union.hashes, records_hash(test.records), draws.views, draws.min_crop,
             draws.templates, first.names]  # fmt: skip

    def make(out: Path) -> None:
        encoded = encode_concept("study", concept, config, union, out / ENCODED, device, on_batch)
        backbone = encoded.backbone(device)
        part_of(concept.task, "encode").encode_test(backbone, test, None, out / TEST)

    place = kept("study-features", facts, cache, make)
    every = Encoded.open(place / ENCODED)
    return StudyPictures(draws, data, every, FeatureStore(place / TEST), every.backbone(torch.device(device)))
