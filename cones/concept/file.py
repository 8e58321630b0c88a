"""The Concept file: what a search found, in one safetensors file of kilobytes that tells all about itself."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from cones.common.errors import DAMAGED, ConceptError
from cones.common.files import file_hash, fresh_file
from cones.common.tensors import read_safetensors
from cones.concept.card import CARD_KEY, ConceptCard, read_card
from cones.concept.checks import check_card, check_fit, check_tensors, is_named_here, read_weights
from cones.inference.opened import Opened, opened
from cones.interfaces.texts import TextEmbeds, with_rows

if TYPE_CHECKING:
    from cones.tasks.classification.infer import Prediction
    from cones.tasks.detection.infer import Detections

WEIGHTS_FILE = "weights.safetensors"
MOST_BYTES = 1 << 30
"""Of a Concept file, which is kilobytes; with ten thousand classes some tens of megabytes."""


@dataclass
class Concept:
    """A searched concept. `tensors` hold `text_embeds` (T, d) with `owner` (T,), `pooled` for a model that wants a
    sentence vector as well, and what the method searched; in generation also its sentences (see `ConceptCard.site`).

    Its base model is opened when it is first used, and stays open as long as a Concept is there that has used it.
    """

    card: ConceptCard
    tensors: dict[str, Tensor]
    base_folder: Path | None = None
    """Where to find the base model, if not where the card says."""
    weights_file: Path | None = None
    """The weights of a fine-tuning, beside the Concept's file."""
    device: Any = "auto"
    """Where the base model runs: a torch device, or `auto`, the GPU where torch has one."""
    fetch: bool = False
    """Whether its base model may be fetched from the hub though the params.yaml of the folder you stand in does not
    name it."""
    _opened: Opened | None = field(default=None, init=False, repr=False, compare=False)

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
        return TextEmbeds(embeds, mask, self.tensors["owner"], pooled)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all. Raises `ConceptError` for a card that could not be read again."""
        from safetensors.torch import save

        with fresh_file(path) as temporary:
            tensors = {name: t.detach().cpu().contiguous() for name, t in self.tensors.items()}
            card = self.card.model_copy(update={"tensors_sha256": tensors_hash(tensors)})
            header = card.model_dump_json()
            check_card(path, read_card(header, path))
            # As bytes, so that a full disk is Python's own error.
            temporary.write_bytes(save(tensors, metadata={CARD_KEY: header}))

    @staticmethod
    def load(
        source: str | Path, base: str | Path | None = None, device: Any = "auto", fetch: bool = False
    ) -> "Concept":
        """Read a Concept from a file, or from the registry as `models:/NAME@champion` or `models:/NAME/VERSION`.

        `base` is the folder of its base model, where that is not found by name; `device` is where that runs. A base
        model on the hub that the params.yaml here does not name is fetched with `fetch` only. Nothing is ever
        unpickled. Raises `ConceptError` for a file that is not a sound Concept.
        """
        if str(source).startswith("models:/"):
            from cones.registry.fetch import fetched_concept

            with fetched_concept(str(source)) as path:
                return _read(path, Path(base) if base else None, device, fetch)
        return _read(Path(source), Path(base) if base else None, device, fetch)

    def predict(
        self,
        images: Sequence[str | Path | Image.Image],
        batch_size: int | None = None,
        threshold: float | None = None,
    ) -> "list[Prediction] | list[Detections]":
        """Classify pictures, given as paths or opened, or find objects in them, by the base model and the searched
        embeddings; the text encoder is not loaded.

        One `Prediction` or, for detection and segmentation, one `Detections` a picture, in their order. Boxes below
        `threshold`, if none is given the card's, are left out. Raises `ConceptError` for a threshold where whole
        pictures are classified, `DataError` for a picture that cannot be read.
        """
        from cones.tasks.classification.infer import classify
        from cones.tasks.detection.infer import detect

        if self.card.task == "generation":
            raise ConceptError(f"`{self.card.concept}` makes pictures and does not judge them; use `generate`")
        if self.card.task == "classification" and threshold is not None:
            raise ConceptError(
                f"`{self.card.concept}` classifies whole pictures; a threshold is for boxes: leave it out"
            )
        with self.opened.lock:
            if self.card.task == "classification":
                return classify(self, images, batch_size)
            return detect(self, images, batch_size, threshold)

    def generate(
        self,
        prompt: str | None = None,
        n: int = 4,
        seed: int = 0,
        others: "Mapping[str, Concept] | None" = None,
        guidance: float | None = None,
        steps: int | None = None,
    ) -> list[Image.Image]:
        """Make `n` pictures of what a prompt says, with the concept in the place of `{}`; None: the first template.

        `others` are Concepts of the same base model by the names they have in the prompt, as `{dog}`. The text encoder
        is loaded for a prompt that is not among the card's templates only. The i-th picture depends on the seed and on
        i alone. Raises `ConceptError` for a Concept or a prompt that this cannot be done with.
        """
        from cones.tasks.generation.infer import generate

        with self.opened.lock:
            return generate(self, prompt, n, seed, others or {}, guidance, steps)

    def join(self, *others: "Concept", rename: Mapping[str, str] | None = None) -> "Concept":
        """One Concept with the classes of this and the others, which are of one base model; see `inference.join`.

        It is used where this one is. `rename` gives classes of the others another label, where two have one name.
        """
        from cones.inference.join import join

        return join([self, *others], rename or {})

    @property
    def opened(self) -> Opened:
        """Where its base model is kept open, for all Concepts of the same base model, task and fine-tuned weights."""
        base = self.card.base
        folder = str(self.base_folder or base.source)
        key = (folder, base.revision, base.sha256, base.kind, self.card.task, self.card.weights_sha256)
        if self._opened is None or self._opened.key != key:
            self._opened = opened(key)
        return self._opened

    @property
    def backbone(self) -> Any:
        """The base model on the Concept's device: opened and its hash checked at the first use, then the same one."""
        from cones.backbones import usable_device

        device = usable_device(self.device)
        backbone = self.opened.on(str(device), lambda: self.open_backbone(device))
        check_fit(self.card, self.tensors, backbone)
        return backbone

    def open_backbone(self, device: Any = "cpu") -> Any:
        """The base model that the embeddings belong to, with the fine-tuned weights where there are any, opened anew
        for a caller that keeps it."""
        from cones.backbones import open_backbone

        backbone = open_backbone(self.card.base.kind, self.locate_base(), device, self.card.task)
        check_fit(self.card, self.tensors, backbone)
        if self.card.weights_sha256 is not None:
            backbone.use_weights(*self.weights())
        return backbone

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

    def find_base(self) -> Path:
        """The folder where the base model should be; see `locate_base`, which looks at what is in it.

        It is fetched where its folder was given by hand, where the params.yaml here names it, and with `fetch`: a file
        from elsewhere does not decide what is fetched. Raises `NotFetched` otherwise, if it is not here already.
        """
        from cones.backbones.hub import locate

        base = self.card.base
        may = self.fetch or self.base_folder is not None or is_named_here(base)
        return locate(str(self.base_folder or base.source), base.revision, fetch=may)

    def locate_base(self) -> Path:
        """The folder of the base model; `ConceptError` when it is another model than the one searched on."""
        from cones.backbones.hub import base_hash

        card, folder = self.card.base, self.find_base()
        found = base_hash(folder)
        if found != card.sha256:
            raise ConceptError(
                f"the concept `{self.card.concept}` was searched on {card.name} with hash {card.sha256[:12]}, and "
                f"{folder} has hash {found[:12]}; give the folder of the right base model, or search again"
                + " (one that is here in part is fetched whole with --fetch)"
                * (card.revision is not None)
            )
        return folder


def _read(path: Path, base: Path | None, device: Any, fetch: bool) -> Concept:
    header, tensors = _content(path)
    card = read_card(header, path)
    check_card(path, card)
    check_tensors(path, card, tensors)
    if card.tensors_sha256 is not None and card.tensors_sha256 != tensors_hash(tensors):
        raise ConceptError(f"{path} is damaged: its numbers are not those that were saved; {DAMAGED}")
    tensors["owner"] = tensors["owner"].long()
    return Concept(card, tensors, base, path.with_name(WEIGHTS_FILE), device, fetch)


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
