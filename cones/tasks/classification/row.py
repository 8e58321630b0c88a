"""What a row of classification leaves in its Concept."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from cones.features.encoded import Encoded
from cones.interfaces.protocols import Backbone
from cones.interfaces.texts import TextEmbeds
from cones.methods.searched import Method


def concept_tensors(text: TextEmbeds, encoded: Encoded) -> dict[str, Tensor]:
    """What stands for the text encoder's output for all classes, and what scores pictures besides."""
    tensors = {"text_embeds": text.embeds[0].detach().clone(), "owner": text.owner}
    if text.bias is not None:
        tensors["bias"] = text.bias.detach().clone()
    if (of := text.pictures) is not None:
        tensors |= {"keys": of.keys.detach().clone(), "key_labels": of.labels, "key_scale": of.scale.detach().clone()}
    return tensors


def watch_of(
    settings: Method, method: nn.Module, backbone: Backbone, encoded: Encoded, folder: Path
) -> Callable[[int], None] | None:
    """Nothing is made on the way."""
    return None
