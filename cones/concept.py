"""The Concept file: what a search found, in one safetensors file of kilobytes that tells all about itself."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from cones.card import CARD_KEY, ConceptCard
from cones.errors import DAMAGED, ConceptError
from cones.files import file_hash, fresh_file
from cones.types import TextEmbeds, with_rows

if TYPE_CHECKING:
    from cones.prediction import Detections, Prediction

WEIGHTS_FILE, WEIGHTS_KEY = "weights.safetensors", "cones_weights"


@dataclass
class Concept:
    """A searched concept. `tensors` hold `text_embeds` (T, d) with `owner` (T,), and what the method searched; in
    generation also its sentences (see `ConceptCard.site`)."""

    card: ConceptCard
    tensors: dict[str, Tensor]
    base_folder: Path | None = None
    """Where to find the base model, if not where the card says."""
    weights_file: Path | None = None
    """The weights of a fine-tuning, beside the Concept's file."""

    @property
    def text(self) -> TextEmbeds:
        """What stands for the text encoder's output: of all classes, in generation of each of the card's templates."""
        if self.card.task == "generation":
            embeds, places = self.tensors["sentences"].float(), self.tensors["places"]
            if self.card.method["name"] == "cones":
                embeds = with_rows(embeds, places, self.tensors["text_embeds"].float())
            return TextEmbeds(embeds, torch.ones_like(places), places.long() - 1)
        embeds = self.tensors["text_embeds"].float()[None]
        return TextEmbeds(embeds, torch.ones(embeds.shape[:2], dtype=torch.bool), self.tensors["owner"])

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        from safetensors.torch import save

        with fresh_file(path) as temporary:
            tensors = {name: t.detach().cpu().contiguous() for name, t in self.tensors.items()}
            card = self.card.model_copy(update={"tensors_sha256": tensors_hash(tensors)})
            # As bytes, so that a full disk is Python's own error.
            temporary.write_bytes(save(tensors, metadata={CARD_KEY: card.model_dump_json()}))

    @staticmethod
    def load(source: str | Path, base: str | Path | None = None) -> "Concept":
        """Read a Concept from a file, or from the registry as `models:/NAME@champion` or `models:/NAME/VERSION`.

        `base` is the folder of its base model, where that is not found by name. Nothing is ever unpickled. Raises
        `ConceptError` for a file that is not a sound Concept.
        """
        if str(source).startswith("models:/"):
            from cones.tracking import fetched_concept

            with fetched_concept(str(source)) as path:
                return _read(path, Path(base) if base else None)
        return _read(Path(source), Path(base) if base else None)

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
        from cones.prediction import classify, detect

        if self.card.task == "generation":
            raise ConceptError(f"`{self.card.concept}` makes pictures and does not judge them; use `generate`")
        if self.card.task != "classification":
            return detect(self, images, batch_size, threshold)
        if threshold is not None:
            raise ConceptError(
                f"`{self.card.concept}` classifies whole pictures; a threshold is for boxes: leave it out"
            )
        return classify(self, images, batch_size)

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
        from cones.generating import generate

        return generate(self, prompt, n, seed, others or {}, guidance, steps)

    def join(self, *others: "Concept", rename: Mapping[str, str] | None = None) -> "Concept":
        """One Concept with the classes of this and the others, which are of one base model; see `cones.joining.join`.

        `rename` gives classes of the others another label, where two have one name.
        """
        from cones.joining import join

        return join([self, *others], rename or {})

    def open_backbone(self, device: Any = "cpu") -> Any:
        """The base model that the embeddings belong to, with the fine-tuned weights where there are any."""
        from cones.backbones import open_backbone

        backbone = open_backbone(self.card.base.kind, self.locate_base(), device, self.card.task)
        if self.card.weights_sha256 is not None:
            backbone.use_weights(*self.weights())
        return backbone

    def weights(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The fine-tuned weights by their names, and what must be known to use them.

        Raises `ConceptError` if their file is missing or another one.
        """
        from safetensors import safe_open

        path = self.weights_file
        if path is None or not path.is_file():
            raise ConceptError(
                f"the concept `{self.card.concept}` was fine-tuned, and its {WEIGHTS_FILE} is not beside it: copy it"
            )
        if file_hash(path) != self.card.weights_sha256:
            raise ConceptError(f"{path} is damaged or of another Concept: its hash differs; {DAMAGED}")
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()[WEIGHTS_KEY])
            return {name: file.get_tensor(name) for name in file.keys()}, about

    def locate_base(self) -> Path:
        """The folder of the base model; `ConceptError` when it is another model than the one searched on."""
        from cones.backbones import base_hash, locate

        card = self.card.base
        folder = locate(str(self.base_folder or card.source), card.revision)
        found = base_hash(folder)
        if found != card.sha256:
            raise ConceptError(
                f"the concept `{self.card.concept}` was searched on {card.name} with hash {card.sha256[:12]}, and "
                f"{folder} has hash {found[:12]}; give the folder of the right base model, or search again"
            )
        return folder


def _read(path: Path, base: Path | None) -> Concept:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ConceptError(f"there is no Concept file {path}; `cones lookup` shows what is registered")
    try:
        with safe_open(path, "pt") as file:
            header: Mapping[str, str] = file.metadata() or {}
            if CARD_KEY not in header:
                raise ConceptError(f"{path} is a safetensors file but not a Concept: its header has no `{CARD_KEY}`")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ConceptError(
            f"{path} is not a readable safetensors file ({error}); it may be cut off: copy it again"
        ) from None
    try:
        card = ConceptCard.model_validate_json(header[CARD_KEY])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConceptError(f"{path} has a card this version cannot read: {where}: {first['msg']}") from None
    _check_tensors(path, card, tensors)
    return Concept(card, tensors, base, path.with_name(WEIGHTS_FILE))


def _check_tensors(path: Path, card: ConceptCard, tensors: Mapping[str, Tensor]) -> None:
    needed = {"text_embeds", "owner"}
    if card.task == "generation":
        needed |= {"sentences", "places", "unconditional"}
    missing = needed - set(tensors)
    if missing:
        raise ConceptError(f"{path} lacks {', '.join(sorted(missing))}; it is not a whole Concept")
    embeds, owner = tensors["text_embeds"], tensors["owner"]
    if embeds.ndim != 2 or owner.shape != embeds.shape[:1]:
        raise ConceptError(
            f"{path} has text_embeds {tuple(embeds.shape)} and owner {tuple(owner.shape)}; they must be (T, d) and (T,)"
        )
    if set(owner.tolist()) - {-1} != set(range(len(card.classes))):
        raise ConceptError(f"{path} has embeddings for other classes than the {len(card.classes)} its card names")
    if not all(t.isfinite().all() for t in tensors.values() if t.is_floating_point()):
        raise ConceptError(f"{path} holds numbers that are not finite; search the row again")
    if card.tensors_sha256 is not None and card.tensors_sha256 != tensors_hash(tensors):
        raise ConceptError(f"{path} is damaged: its numbers are not those that were saved; {DAMAGED}")


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, types, shapes and values of tensors, in hex."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()
