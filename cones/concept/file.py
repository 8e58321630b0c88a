"""The Concept file: what a search found, in one safetensors file of kilobytes that tells all about itself."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cones.common.errors import DAMAGED, ConceptError
from cones.common.files import file_hash, fresh_file
from cones.common.tensors import read_safetensors
from cones.concept.card import CARD_KEY, ConceptCard, read_card
from cones.concept.checks import check_tensors, read_weights
from cones.interfaces.texts import KeyedPictures, TextEmbeds, with_rows

WEIGHTS_FILE = "weights.safetensors"
MOST_BYTES = 1 << 30
"""Of a Concept file, which is kilobytes; with ten thousand classes some tens of megabytes."""


@dataclass
class Concept:
    """A searched concept. `tensors` hold `text_embeds` (T, d) with `owner` (T,), `pooled` for a model that wants a
    sentence vector as well, `visual_tokens` of a method that enters the image encoder, and what the method searched; in
    classification a `bias` (T,), or `keys` (N, d) of pictures with their `key_labels` and `key_scale` (see
    `TextEmbeds`); in generation also its sentences (see `ConceptCard.site`).
    """

    card: ConceptCard
    tensors: dict[str, Tensor]
    weights_file: Path | None = None
    """The weights of a fine-tuning, beside the Concept's file."""

    @property
    def text(self) -> TextEmbeds:
        """What stands for the text encoder's output: of all classes, in generation of each of the card's templates."""
        pooled = self.tensors.get("pooled")
        if self.card.task == "generation":
            embeds, places = self.tensors["sentences"].float(), self.tensors["places"]
            if self.card.method["name"] == "cones":
                embeds = with_rows(embeds, places, self.tensors["text_embeds"].float())
            return TextEmbeds(embeds, torch.ones_like(places), places.long() - 1, pooled)
        embeds = self.tensors["text_embeds"].float()[None]
        mask = torch.ones(embeds.shape[:2], dtype=torch.bool)
        return TextEmbeds(embeds, mask, self.tensors["owner"], pooled, self._floats("bias"), self._pictures)

    @property
    def visual_tokens(self) -> Tensor | None:
        """What the method adds in the image encoder (L, m, d): pictures are encoded with it. None: nothing."""
        return self._floats("visual_tokens")

    @property
    def _pictures(self) -> KeyedPictures | None:
        keys, scale = self._floats("keys"), self._floats("key_scale")
        if keys is None or scale is None:
            return None
        return KeyedPictures(keys, self.tensors["key_labels"].long(), scale)

    def _floats(self, name: str) -> Tensor | None:
        tensor = self.tensors.get(name)
        return None if tensor is None else tensor.float()

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all. Raises `ConceptError` for a card that could not be read again."""
        from safetensors.torch import save

        with fresh_file(path) as temporary:
            tensors = {name: t.detach().cpu().contiguous() for name, t in self.tensors.items()}
            card = self.card.model_copy(update={"tensors_sha256": tensors_hash(tensors)})
            header = card.model_dump_json()
            read_card(header, path)
            # As bytes, so that a full disk is Python's own error.
            temporary.write_bytes(save(tensors, metadata={CARD_KEY: header}))

    @staticmethod
    def load(path: Path | str, check: Callable[[Path, ConceptCard], None] = lambda path, card: None) -> "Concept":
        """Read a Concept from its file. Nothing is ever unpickled. `check` may refuse its card before its tensors.

        Raises `ConceptError` for a file that is not a sound Concept.
        """
        path = Path(path)
        header, tensors = _content(path)
        card = read_card(header, path)
        check(path, card)
        check_tensors(path, card, tensors)
        if card.tensors_sha256 is not None and card.tensors_sha256 != tensors_hash(tensors):
            raise ConceptError(f"{path} is damaged: its numbers are not those that were saved; {DAMAGED}")
        tensors["owner"] = tensors["owner"].long()
        return Concept(card, tensors, path.with_name(WEIGHTS_FILE))

    def weights(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The fine-tuned weights by their names, and what must be known to use them.

        Raises `ConceptError` if their file is missing or another one, or holds something else.
        """
        path = self.weights_file
        if path is None or not path.is_file():
            raise ConceptError(
                f"the concept `{self.card.concept}` was fine-tuned, and its {WEIGHTS_FILE} is not beside it: copy it"
            )
        if file_hash(path) != self.card.weights_sha256:
            raise ConceptError(f"{path} is damaged or of another Concept: its hash differs; {DAMAGED}")
        return read_weights(path)


def _content(path: Path) -> tuple[str, dict[str, Tensor]]:
    """A Concept file's card, as JSON, and its tensors, none of it looked at yet."""
    if not os.path.isfile(path):
        if os.path.lexists(path):
            raise ConceptError(f"{path} is no file; give a Concept file, such as concept.safetensors in a row's folder")
        raise ConceptError(f"there is no Concept file {path}; `cones lookup` shows what is registered")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ConceptError(f"{path} has {size >> 20} MB; a Concept has kilobytes, at most {MOST_BYTES >> 20} MB")
    header, tensors = read_safetensors(path, ConceptError)
    if CARD_KEY not in header:
        raise ConceptError(f"{path} is a safetensors file but not a Concept: its header has no `{CARD_KEY}`")
    return header[CARD_KEY], tensors


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, types, shapes and values of tensors, in hex."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()
