"""Judging searched Concepts on pictures that no search has seen."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cones.backbones import open_backbone
from cones.concept import Concept
from cones.data import Split, records_hash
from cones.encoding import encode_split
from cones.errors import ConceptError
from cones.features import FeatureStore
from cones.files import content_hash, folder_hash
from cones.tasks import classification_metrics, contact_sheet

ENCODING_CODE = ("encoding.py", "features.py", "data/pictures.py", "backbones/clip.py")
"""What decides the features of a picture: a change in it makes kept ones worthless."""
SHOWN = 40
"""Test pictures that are shown, the same for every row."""
SIDE = 160
"""The longer side of one that is put aside for the report, in pixels, if it is larger."""


@dataclass(frozen=True)
class Evaluation:
    """A row's test metrics; its pictures' ids, true and predicted labels and scores; some of them drawn."""

    metrics: dict[str, float]
    predictions: list[tuple[str, str, str, float]]
    sheet: Image.Image


def evaluate_rows(concepts: Mapping[str, Path], test: Path, cache: Path, device: Any = "cpu") -> dict[str, Evaluation]:
    """Test metrics and predictions of each Concept file of one concept; the test pictures are encoded once for all."""
    split = Split.open(test)
    shown = shown_pictures(split)
    found: dict[str, Evaluation] = {}
    opened: dict[Path, Any] = {}
    for row, path in concepts.items():
        concept = Concept.load(path)
        classes = concept.card.classes
        if tuple(classes) != split.classes:
            raise ConceptError(f"{path} knows {len(classes)} classes, {test} has {len(split.classes)}, and they differ")
        folder = concept.locate_base()
        backbone = opened.setdefault(folder, open_backbone(concept.card.base.kind, folder, device))
        store = _test_features(concept, backbone, split, cache)
        batches = (b.to(device) for b in store.batches(1024))
        scores = torch.cat([backbone.predict(b, concept.text).scores.cpu() for b in batches])
        best = scores.max(1)
        rows = zip(store.ids, store.labels.tolist(), best.indices.tolist(), best.values.tolist())
        predictions = [(i, classes[truth], classes[guess], round(score, 6)) for i, truth, guess, score in rows]
        sheet = contact_sheet(list(shown.values()), [predictions[i][1:3] for i in shown])
        found[row] = Evaluation(classification_metrics(scores, store.labels), predictions, sheet)
    return found


def shown_pictures(split: Split) -> dict[int, Image.Image]:
    """Some pictures of a split drawn at random, always the same, by their index; none larger than `SIDE`."""
    count = len(split.records)
    pictures = {i: split.picture(i) for i in sorted(random.Random(0).sample(range(count), min(SHOWN, count)))}
    for picture in pictures.values():
        picture.thumbnail((SIDE, SIDE))
    return pictures


def _test_features(concept: Concept, backbone: Any, split: Split, cache: Path) -> FeatureStore:
    """The test pictures' features, kept by what they came from, so that editing a row does not encode them again."""
    package = Path(__file__).parent
    code = folder_hash(package, [package / name for name in ENCODING_CODE])
    key = content_hash([code, concept.card.base.sha256, concept.card.preprocessing, records_hash(split.records)])
    folder = cache / "test-features" / key[:16]
    if not folder.exists():
        encode_split(backbone, split, list(range(len(split.records))), 1, 1.0, 0, folder)
    return FeatureStore(folder)
