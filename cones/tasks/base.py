"""The base model of a Concept: located, known by its hash, and opened with fine-tuned weights where there are any."""

from pathlib import Path
from typing import Any

from cones.backbones import open_backbone
from cones.backbones.hub import base_hash, locate
from cones.common.errors import ConceptError
from cones.concept.checks import check_fit
from cones.concept.file import Concept
from cones.interfaces.protocols import Backbone


def open_base(concept: Concept, device: Any = "cpu", folder: Path | None = None) -> Backbone:
    """The base model that a Concept's embeddings belong to, opened anew for a caller that keeps it.

    `folder` is where it is; None: where the card says. Raises `ConceptError` when it is another model.
    """
    card = concept.card
    place = locate(card.base.source, card.base.revision) if folder is None else folder
    refuse_other_base(concept, place)
    backbone = open_backbone(card.base.kind, place, device, card.task)
    check_fit(card, concept.tensors, backbone)
    if card.weights_sha256 is not None:
        backbone.use_weights(*concept.weights())
    return backbone


def refuse_other_base(concept: Concept, folder: Path) -> None:
    """`ConceptError` for a folder with another model than the one searched on."""
    card, have = concept.card.base, base_hash(folder)
    if have != card.sha256:
        raise ConceptError(
            f"the concept `{concept.card.concept}` was searched on {card.name} with hash {card.sha256[:12]}, and "
            f"{folder} has hash {have[:12]}; give the folder of the right base model, or search again"
            + " (one that is here in part is fetched whole with --fetch)"
            * (card.revision is not None)
        )
