"""The Concept of a fine-tuned row, with its weights file."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from torch import Tensor

from cones.common.errors import ConceptError
from cones.concept.checks import WEIGHTS_KEY
from cones.concept.file import Concept
from cones.features.encoded import Encoded
from cones.finetuning.settings import Finetune
from cones.finetuning.steps import Metrics
from cones.search.outcome import FoundRow, versions
from cones.search.trained import Trained


@dataclass(frozen=True)
class FinetunedRow(FoundRow):
    """What fine-tuning a row gives; `weights` are the bytes of the weights file that goes beside the Concept."""

    weights: bytes


def tuned_concept(
    name: str,
    settings: Finetune,
    start: Concept,
    task: str,
    trained: Trained,
    built: dict[str, Any],
    text: Tensor,
    metrics: Metrics,
    libraries: Sequence[str],
) -> tuple[Concept, bytes]:
    """The Concept of a fine-tuned row, and the bytes of its weights file."""
    from safetensors.torch import save

    weights = trained.tensors()
    content = save(weights, metadata={WEIGHTS_KEY: json.dumps(built)})
    card = {
        "row": name,
        "task": task,
        "finetune": {**settings.model_dump(by_alias=True), "trained_tensors": len(weights)},
        "weights_sha256": hashlib.sha256(content).hexdigest(),
        "trained_parameters": trained.count,
        "val": {k: v for k, v in metrics.items() if math.isfinite(v)},
        "versions": versions() | {library: version(library) for library in libraries},
    }
    tensors = start.tensors
    if trained.embeds is not None:
        card["site"] = "text_embeds"
        kept = {name: tensor for name, tensor in tensors.items() if name in ("owner", "pooled")}
        tensors = {"text_embeds": text.clone(), **kept}
    return Concept(start.card.model_copy(update=card), tensors), content


def refuse_other_start(start: Concept, encoded: Encoded) -> None:
    """`ConceptError` for a start of other pictures or of another base model."""
    card = start.card
    if (card.base.sha256, card.split_hash) != (encoded.base.sha256, encoded.about["split_hash"]):
        raise ConceptError(
            f"the row `{card.row}` was searched on other pictures or another base model than "
            f"`{encoded.about['concept']}` has now; run `dvc repro` to search it again"
        )
