"""The pictures of a study: encoded once, and divided among its cells."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cones.backbones.hub import base_hash, locate
from cones.backbones.settings import BackboneConfig
from cones.common.errors import DataError
from cones.common.files import content_hash
from cones.common.kept import kept
from cones.common.messages import nearest
from cones.data.prepared import Split, records_hash
from cones.features.draw import Drawn, refuse_other_task
from cones.features.encoded import Encoded
from cones.features.store import FeatureStore
from cones.interfaces.protocols import Backbone
from cones.study.draws import draw_cell, searched_classes, spoken
from cones.study.settings import Draws
from cones.study.targets import Target
from cones.tasks.encode import encode_concept
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
    """All pictures that a study draws, encoded, and those that it tests on, by the column of the accuracy there."""

    draws: Draws
    data: Path
    every: Encoded
    targets: dict[str, Target]
    opened: Backbone

    def cell(self, shots: int, seed: int) -> CellPictures:
        """The pictures of one draw. `DataError` if a class has fewer than `shots`."""
        drawn, every = draw_cell(self.draws, shots, seed, self.data), self.every
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
    """Encode what the draws of all seeds see together, each picture once, and the test pictures of each data set; or
    take what is kept of that. The targets stand beside `data`.

    `DataError` if a class has fewer pictures than the most shots, and for a target that does not fit the protocol.
    """
    concept = draws.concept(max(draws.shots), 0)
    every = [draw_cell(draws, shots, seed, data) for shots in draws.shots for seed in range(1, draws.seeds + 1)]
    first = every[0]
    shown, held = (sorted({i for of in every for i in getattr(of, name)}) for name in ("shown", "held"))
    union = Drawn(first.train, shown, first.val, held, first.names, draws.views)
    folder = locate(config.source, config.revision)
    splits = {name: Split.open(data.with_name(name) / "test") for name in draws.targets}
    for name, split in splits.items():
        _refuse_other_classes(draws, name, split, first.train.classes)
    concept.spoken(list({label for split in (first.val, *splits.values()) for label in split.classes}))
    facts = [base_hash(folder), union.hashes, draws.views, draws.min_crop, draws.templates, first.names]

    def make(out: Path) -> None:
        encode_concept("study", concept, config, union, out / ENCODED, device, on_batch)

    encoded = Encoded.open(kept("study-features", facts, cache, make) / ENCODED)
    opened = encoded.backbone(torch.device(device))
    targets = _targets(draws, encoded, opened, data, cache, splits)
    return StudyPictures(draws, data, encoded, targets, opened)


def _targets(
    draws: Draws, encoded: Encoded, opened: Backbone, data: Path, cache: Path, splits: dict[str, Split]
) -> dict[str, Target]:
    """What cells are tested on: the classes searched for, then the new ones or the other data sets."""
    test, templates = Split.open(data / "test"), encoded.about["templates"]
    features, count = _test_features(test, encoded, opened, cache), searched_classes(draws, test.classes)
    names = spoken(draws, test.classes)
    found = {"accuracy": Target(test, features, range(count), names[:count], templates)}
    if count < len(names):
        found["new_accuracy"] = Target(test, features, range(count, len(names)), names[count:], templates)
    for name, split in splits.items():
        if draws.protocol == "cross_dataset":
            templates = part_of("classification", "encode").templates_of(draws.templates, split)
        features = _test_features(split, encoded, opened, cache)
        said = spoken(draws, split.classes)
        found[f"accuracy/{name}"] = Target(split, features, range(len(said)), said, templates)
    return found


def _test_features(test: Split, encoded: Encoded, opened: Backbone, cache: Path) -> FeatureStore:
    def make(out: Path) -> None:
        part_of("classification", "encode").encode_test(opened, test, None, out / TEST)

    facts = [encoded.base.sha256, "test", [r.id for r in test.records], records_hash(test.records)]
    return FeatureStore(kept("study-features", facts, cache, make) / TEST)


def _refuse_other_classes(draws: Draws, name: str, target: Split, searched: Sequence[str]) -> None:
    """`DataError` for a target without classes, or in domain generalisation with others than were searched for."""
    refuse_other_task(draws.concept(1, 1).model_copy(update={"data": name}), target)
    for label in target.classes if draws.protocol == "domain_generalisation" else ():
        if label not in searched:
            raise DataError(
                f"`{name}` has the class `{label}`, which `{draws.data}` does not have{nearest(label, searched)}; "
                "domain_generalisation knows classes by their names: rename it, or take cross_dataset"
            )
