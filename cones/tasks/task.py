"""What a task is: how predictions are measured against the truth."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor

from cones.concept.file import Concept
from cones.features.store import FeatureStore
from cones.interfaces.pictures import Features, Instances, Predictions
from cones.interfaces.protocols import Backbone
from cones.interfaces.texts import TextEmbeds


@dataclass(frozen=True)
class Sampled:
    """Pictures made with a Concept by the sentence they were made of, the first template's first, and what they are
    worth; `of_prompts` has the likeness (`dino`) and `clip_t` of each sentence."""

    pictures: dict[str, list[Image.Image]]
    metrics: dict[str, float]
    of_prompts: dict[str, tuple[float, float]]


@runtime_checkable
class Judge(Protocol):
    """Models that had no part in a search, and judge what is made with a Concept."""

    def judge(self, concept: Concept, backbone: Backbone, subject: Sequence[Image.Image]) -> Sampled:
        """Make pictures with a Concept on its opened base model, and measure them beside those of the subject."""
        ...


@dataclass(frozen=True)
class Evaluated:
    """What predictions are worth.

    `metrics` by name. Those of detection are in [0, 1] and rounded to six places, and it has more: `per_class` is the
    AP and AP50 of each class by its name, `curves` a (kind, class, recall, precision) a point, at IoU 0.5; kind is
    "box" or "mask", and the mean over classes is called `ALL_CLASSES`. What has no truth (a class, a size) has no value
    and is left out.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    curves: list[tuple[str, str, float, float]] = field(default_factory=list)


@dataclass(frozen=True)
class OfPatients:
    """What predictions are worth for patients: figures, their 95 % intervals, and in detection the (false positives a
    volume, sensitivity) of each threshold."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    froc: list[tuple[float, float]] = field(default_factory=list)


@runtime_checkable
class Truth(Protocol):
    """What pictures show: a class each, or objects in pictures of some sizes (height, width)."""

    @property
    def labels(self) -> Tensor: ...

    @property
    def truths(self) -> Sequence[Instances]: ...

    @property
    def sizes(self) -> Sequence[tuple[int, int]]: ...


Metrics = dict[str, float]


Quick = Callable[[Sequence[Predictions], Truth, Sequence[str]], Metrics]


Full = Callable[[Sequence[Predictions], Truth, Sequence[str]], Evaluated]


@dataclass(frozen=True)
class Task:
    """How predictions of a task are measured against the truth, given the classes: `quick` while searching, `full` at
    its end. `batch` pictures are predicted at once, and kept as `keep` gives them: on the CPU, in little room."""

    quick: Quick
    full: Full
    keep: Callable[[Predictions], Predictions]
    batch: int


@dataclass(frozen=True)
class Evaluation:
    """What a row is worth on test pictures, and what it predicted for the pictures of `store`, in their order; in
    generation also the pictures it made, where pictures have groups what it is worth for patients, and of visual tokens
    a sheet of what they look at."""

    judged: Evaluated
    predictions: list[Predictions]
    store: FeatureStore
    sampled: Sampled | None = None
    of_patients: OfPatients | None = None
    attention: Image.Image | None = None

    @property
    def metrics(self) -> dict[str, float]:
        return self.judged.metrics


@torch.no_grad()
def predict_all(
    backbone: Backbone,
    batches: Iterable[Features],
    text: TextEmbeds | Callable[[Features], TextEmbeds],
    task: Task,
    device: Any,
    anew: bool = False,
) -> list[Predictions]:
    """What is predicted for batches of pictures, as the task keeps it. Texts take turns; a function makes those of the
    first and largest batch, and the others take from them; or `anew` those of each batch."""
    found, texts = [], None
    for batch in (batch.to(device) for batch in batches):
        if texts is None or anew:
            texts = text if isinstance(text, TextEmbeds) else text(batch)
        first = 0 if batch.part is None else batch.part.start
        found.append(task.keep(backbone.predict(batch, texts.in_turns(len(batch.views), first))))
    return found
