"""Judging searched Concepts on pictures that no search has seen."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from cones.concept import Concept
from cones.data import Split, records_hash
from cones.errors import ConceptError
from cones.features import FeatureStore
from cones.files import content_hash, folder_hash
from cones.judging import Judges, Sampled
from cones.picture_encoding import encode_objects, encode_split
from cones.search import predict_all
from cones.tasks import TASKS, Evaluated
from cones.types import Features, Predictions, TextEmbeds

ENCODING_CODE = (
    "picture_encoding.py",
    "features.py",
    "targets.py",
    "data/pictures.py",
    "backbones/clip.py",
    "backbones/glip.py",
    "backbones/glip_parts.py",
    "backbones/diffusion.py",
)
"""What decides the features of a picture: a change in it makes kept ones worthless."""


@dataclass(frozen=True)
class Evaluation:
    """What a row is worth on test pictures, and what it predicted for the pictures of `store`, in their order; in
    generation also the pictures it made."""

    judged: Evaluated
    predictions: list[Predictions]
    store: FeatureStore
    sampled: Sampled | None = None

    @property
    def metrics(self) -> dict[str, float]:
        return self.judged.metrics


def evaluate_rows(
    concepts: Mapping[str, Path], test: Path, cache: Path, device: Any = "cpu", judges: Judges | None = None
) -> dict[str, Evaluation]:
    """Test metrics and predictions of each Concept file of one concept; the test pictures are encoded once for all.

    `judges` are for Concepts of generation, which make pictures for them.
    """
    split = Split.open(test)
    found: dict[str, Evaluation] = {}
    opened: dict[tuple[Path, str | None], Any] = {}
    for row, path in concepts.items():
        concept = Concept.load(path)
        card = concept.card
        if tuple(card.classes) != split.classes:
            raise ConceptError(
                f"{path} knows {len(card.classes)} classes, {test} has {len(split.classes)}, and they differ"
            )
        key = (concept.locate_base(), card.weights_sha256)
        if key not in opened:
            opened[key] = concept.open_backbone(device)
        backbone = opened[key]
        store = _test_features(concept, backbone, split, cache)
        text, task = concept.text.to(device), TASKS[card.task]

        def told(batch: Features, text: TextEmbeds = text) -> TextEmbeds:
            return text.in_turns(len(batch.views))

        predictions = predict_all(backbone, store.batches(task.batch), told, task, device)
        judged, made = task.full(predictions, store, card.classes), None
        if judges is not None:
            made = judges.judge(concept, backbone, [split.picture(i) for i in range(len(split.records))])
            judged = Evaluated(judged.metrics | made.metrics)
        found[row] = Evaluation(judged, predictions, store, made)
    return found


def _test_features(concept: Concept, backbone: Any, split: Split, cache: Path) -> FeatureStore:
    """The test pictures' features, kept by what they came from, so that editing a row does not encode them again."""
    package, card = Path(__file__).parent, concept.card
    code = folder_hash(package, [package / name for name in ENCODING_CODE])
    vision = card.weights_sha256 if card.finetune and card.finetune["kind"] == "full" else None
    key = content_hash([code, card.base.sha256, vision, card.preprocessing, card.canvas, records_hash(split.records)])
    folder, rows = cache / "test-features" / key[:16], list(range(len(split.records)))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # another concept may be evaluated on the same pictures
        if folder.exists():
            return FeatureStore(folder)
        if card.canvas is None:
            return encode_split(backbone, split, rows, 1, 1.0, 0, folder)
        sizes = [r.size for r in split.records if r.size]
        canvas = tuple(map(max, backbone.canvas(sizes), card.canvas))
        return encode_objects(backbone, split, rows, 1, (canvas[0], canvas[1]), folder)
