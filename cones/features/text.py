"""What the text encoder says of a concept's names, as tensors to be kept."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from cones.interfaces.protocols import Backbone
from cones.interfaces.texts import TextEmbeds

Told = tuple[dict[str, Any], list[str], dict[str, Tensor]]
"""What is to be known of an encoded concept beside what all have: facts, templates and tensors."""


def text_tensors(backbone: Backbone, names: Sequence[str], templates: Sequence[str]) -> dict[str, Tensor]:
    text = backbone.embed_text(names, templates=templates)
    return {"text": text.embeds[0], "owner": text.owner, **pooled_tensors(text)}


def pooled_tensors(text: TextEmbeds) -> dict[str, Tensor]:
    return {} if text.pooled is None else {"pooled": text.pooled}
