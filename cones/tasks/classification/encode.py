"""Encoding a concept of classification."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from cones.backbones.settings import BackboneConfig
from cones.common.errors import DataError
from cones.data.prepared import Split
from cones.data.splits import draw_shots
from cones.features.draw import Drawn, refuse_other_task
from cones.features.store import write_no_features
from cones.features.text import Told, text_tensors
from cones.features.views import encode_split
from cones.interfaces.protocols import DualEncoder
from cones.tasks.classification.settings import ClassificationConcept


def draw(concept: ClassificationConcept, train: Split, val: Split) -> tuple[list[int], list[int]]:
    """The training and the validation pictures, as indices; `DataError` if a class has fewer than `shots`."""
    refuse_other_task(concept, train)
    shown = draw_shots(train, concept.shots, concept.seed)
    held = draw_shots(val, concept.val_shots or concept.shots, concept.seed, concept.val_shots is None)
    if not held:
        raise DataError(f"there are no pictures in {val.folder} to validate on; prepare the data with some")
    return shown, held


def refuse_unable(name: str, concept: ClassificationConcept, backbone: DualEncoder) -> None:
    """`BackboneError` for a base model that cannot do what the concept asks for."""


def encode(
    concept: ClassificationConcept,
    backbone: DualEncoder,
    config: BackboneConfig,
    drawn: Drawn,
    out: Path,
    on_batch: Callable[[int], None],
) -> Told:
    """Features of views, and each class's sentences averaged. Of a draw without validation pictures there are none."""
    crops = (concept.views, concept.min_crop, concept.seed)
    encode_split(backbone, drawn.train, drawn.shown, *crops, out / "train", on_batch)
    if drawn.held:
        encode_split(backbone, drawn.val, drawn.held, 1, 1.0, concept.seed, out / "val", on_batch)
    else:
        write_no_features(out / "val")
    templates = templates_of(concept.templates, drawn.train)
    special = {"logit_scale": backbone.logit_scale, "shots": concept.shots}
    return special, templates, text_tensors(backbone, drawn.names, templates)


def templates_of(given: Sequence[str] | None, split: Split) -> list[str]:
    """The sentences that class names are put into: those given, else those of the data set's layout."""
    return list(given or split.templates or ("a photo of a {}.",))


def encode_test(
    backbone: DualEncoder, split: Split, canvas: None, target: Path, visual_tokens: Tensor | None = None
) -> None:
    """Features of all pictures of a split, as they are; with the visual tokens of a Concept that has some."""
    rows = list(range(len(split.records)))
    encode_split(backbone, split, rows, 1, 1.0, 0, target, visual_tokens=visual_tokens)
