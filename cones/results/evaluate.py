"""Judging searched Concepts on pictures that no search has seen."""

import gc
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from PIL import Image

from cones.backbones import family_of
from cones.common.errors import ConceptError
from cones.common.kept import kept
from cones.concept.checks import check_fit
from cones.concept.file import Concept, tensors_hash
from cones.data.prepared import Split, records_hash
from cones.features.store import FeatureStore
from cones.finetuning.settings import keeps_features
from cones.interfaces.protocols import Attends, Backbone, Grounding
from cones.tasks.base import open_base
from cones.tasks.parts import has_part, part_of, task_of
from cones.tasks.task import Evaluated, Evaluation, Judge, predict_all
from cones.tasks.texts import at_once, texts_of

FEATURES = "features"


def evaluate_rows(
    concepts: Mapping[str, Path], test: Path, cache: Path, device: Any = "cpu", judges: Judge | None = None
) -> dict[str, Evaluation]:
    """Test metrics and predictions of each Concept file of one concept; the test pictures are encoded once for all.

    Rows of one base model with the same weights are judged one after the other, so that no two models are open at once.
    `judges` are for Concepts of generation, which make pictures for them.
    """
    split = Split.open(test)
    groups: dict[tuple[str, str | None, str], dict[str, Concept]] = {}
    for row, path in concepts.items():
        concept = Concept.load(path)
        card = concept.card
        if tuple(card.classes) != split.classes:
            raise ConceptError(
                f"{path} knows {len(card.classes)} classes, {test} has {len(split.classes)}, and they differ"
            )
        groups.setdefault((card.base.sha256, card.weights_sha256, card.task), {})[row] = concept
    pictures, found = _TestPictures(split, cache, device, judges), dict[str, Evaluation]()
    for rows in groups.values():
        found |= pictures.evaluate(rows)
        gc.collect()  # a model's parts may refer to each other
    return {row: found[row] for row in concepts}


@dataclass(frozen=True)
class _TestPictures:
    """The pictures that rows are judged on, their features by the folder these are kept in, and what judges samples."""

    split: Split
    cache: Path
    device: Any
    judges: Judge | None
    stores: dict[Path, FeatureStore] = field(default_factory=dict)

    @cached_property
    def subject(self) -> list[Image.Image]:
        return [self.split.picture(i) for i in range(len(self.split.records))]

    def evaluate(self, rows: Mapping[str, Concept]) -> dict[str, Evaluation]:
        """What Concepts of one base model with the same weights are worth."""
        first = next(iter(rows.values()))
        backbone, task = open_base(first, self.device), task_of(first.card.task)
        evaluations: dict[str, Evaluation] = {}
        for row, concept in rows.items():
            store, text = self.features(concept, backbone), texts_of(concept, backbone)
            own_texts = concept.card.needs_text_encoder
            batches = store.batches(at_once(task.batch, len(concept.card.classes), own_texts))
            predictions = predict_all(backbone, batches, text, task, self.device, own_texts)
            judged, made = task.full(predictions, store, concept.card.classes), None
            if self.judges is not None:
                made = self.judges.judge(concept, backbone, self.subject)
                judged = Evaluated(judged.metrics | made.metrics)
            patients = None
            if any(record.group for record in self.split.records) and has_part(concept.card.task, "patients"):
                of_patients = part_of(concept.card.task, "patients").of_patients
                patients = of_patients(predictions, store, self.split, concept.card)
                judged = replace(judged, metrics=judged.metrics | patients.metrics)
            looks, tokens = None, concept.visual_tokens
            if tokens is not None and isinstance(backbone, Attends) and has_part(concept.card.task, "attention"):
                looks = part_of(concept.card.task, "attention").attention_sheet(backbone, self.split, tokens)
            evaluations[row] = Evaluation(judged, predictions, store, made, patients, looks)
        return evaluations

    def features(self, concept: Concept, backbone: Backbone) -> FeatureStore:
        """Kept by what they came from, so that editing a row does not encode the pictures again."""
        card, records, canvas = concept.card, self.split.records, None
        if card.canvas is not None:
            sizes = [r.size for r in records if r.size]
            height, width = map(max, cast(Grounding, backbone).canvas(sizes), card.canvas)
            canvas = (height, width)

        visual = [] if concept.visual_tokens is None else [concept.visual_tokens]
        check_fit(card, concept.tensors, backbone)

        def make(folder: Path) -> None:
            part_of(card.task, "encode").encode_test(backbone, self.split, canvas, folder / FEATURES, *visual)

        changed = card.finetune is not None and not keeps_features(card.finetune["kind"], family_of(card.base.kind))
        weights = card.weights_sha256 if changed else None
        facts = [card.base.sha256, weights, card.preprocessing, canvas, [r.id for r in records], records_hash(records)]
        facts += [tensors_hash({"visual_tokens": tokens}) for tokens in visual]
        folder = kept("test-features", facts, self.cache, make) / FEATURES
        if folder not in self.stores:
            self.stores[folder] = FeatureStore(folder)
        return self.stores[folder]
