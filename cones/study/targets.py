"""What cells are tested on, and what is said there of its classes, be they those searched for or others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from cones.data.prepared import Split, records_hash
from cones.features.store import FeatureStore
from cones.interfaces.pictures import Features
from cones.interfaces.protocols import Backbone, prompts_of, text_of, told_by
from cones.interfaces.texts import KeyedPictures, TextEmbeds
from cones.methods.searched import Method
from cones.search.outcome import SearchedRow
from cones.tasks.texts import texts_of

Told = TextEmbeds | Callable[[Features], TextEmbeds]
"""The text of all pictures, or what makes those of some."""


@dataclass(frozen=True)
class Target:
    """Pictures to test on: those of a split with some of its labels, which are told apart among each other.

    `features` are those of all the split's pictures; `names` is what the classes are called, in `templates`.
    """

    split: Split
    features: FeatureStore
    labels: range
    names: list[str]
    templates: list[str]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.split.classes[self.labels.start : self.labels.stop]

    def of(self, features: FeatureStore) -> FeatureStore:
        """The pictures of these classes, among features of all the split's; their labels count from 0."""
        if len(self.labels) == len(self.split.classes):
            return features
        chosen = features.at([i for i, label in enumerate(features.labels.tolist()) if label in self.labels])
        chosen.labels = chosen.labels - self.labels.start
        return chosen

    @property
    def facts(self) -> list:
        """All that decides what a cell is worth here."""
        hashed = records_hash(self.split.records)
        return [hashed, self.labels.start, self.labels.stop, self.classes, self.names, self.templates]


def told_of(target: Target, found: SearchedRow, method: Method, backbone: Backbone) -> Told:
    """What a searched method says of the classes of a target.

    Of the classes that it was searched for it is what the Concept holds. Of others, what it searched goes with their
    names; where that is not before the text encoder, or nothing is searched, the text is that of the names in
    templates. A method that is tied to its classes says the same of some of them.
    """
    concept = found.concept
    if tuple(concept.card.classes) == target.classes:
        return texts_of(concept, backbone)
    if not method.names_any_class:
        places = [concept.card.classes.index(label) for label in target.classes]
        return of_classes(concept.text.to(backbone.device), places)
    names = [method.own_names.get(label, name) for label, name in zip(target.classes, target.names)]
    if method.reads_pictures:
        return partial(text_of, found.module, backbone, names)
    with torch.no_grad():
        prompts = prompts_of(found.module, backbone, names)
        if prompts.text_embeds is None:
            return told_by(prompts, backbone, names)
        return backbone.embed_text(names, templates=target.templates)


def of_classes(text: TextEmbeds, places: Sequence[int]) -> TextEmbeds:
    """What stands for some classes of a dual encoder, in that order."""
    found = TextEmbeds.one_per_class(text.embeds[:, list(places)])
    bias = None if text.bias is None else text.bias[list(places)]
    pictures = None if text.pictures is None else _keyed(text.pictures, places)
    return TextEmbeds(found.embeds, found.mask, found.owner, bias=bias, pictures=pictures)


def _keyed(of: KeyedPictures, places: Sequence[int]) -> KeyedPictures:
    """The pictures of some classes."""
    new = {place: i for i, place in enumerate(places)}
    kept = [i for i, label in enumerate(of.labels.tolist()) if label in new]
    labels = torch.tensor([new[label] for label in of.labels[kept].tolist()], dtype=torch.long)
    return KeyedPictures(of.keys[kept], labels.to(of.keys.device), of.scale)
