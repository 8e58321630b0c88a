"""A Concept in use: with its base model, which is opened and checked once, and then predicts, generates, joins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cones.backbones import usable_device
from cones.backbones.hub import locate
from cones.common.errors import ConceptError
from cones.concept.checks import check_fit
from cones.concept.file import Concept
from cones.config.concepts import check_card, is_named_here
from cones.inference.opened import Opened, opened
from cones.interfaces.protocols import Backbone
from cones.tasks.base import open_base, refuse_other_base
from cones.tasks.parts import part_of


@dataclass
class OpenConcept(Concept):
    """A Concept that is used. Its base model is opened when it is first needed, and stays open as long as a Concept is
    there that has used it."""

    base_folder: Path | None = None
    """Where to find the base model, if not where the card says."""
    device: Any = "auto"
    """Where the base model runs: a torch device, or `auto`, the GPU where torch has one."""
    fetch: bool = False
    """Whether its base model may be fetched from the hub though the params.yaml of the folder you stand in does not
    name it."""
    _opened: Opened | None = field(default=None, init=False, repr=False, compare=False)

    def predict(
        self, images: Sequence[str | Path | Image.Image], batch_size: int | None = None, threshold: float | None = None
    ) -> list[Any]:
        """Classify pictures, given as paths or opened, or find objects in them, by the base model and the searched
        embeddings; the text encoder is not loaded, but for a Concept whose card has `needs_text_encoder`: there it runs
        for each picture and class.

        One `Prediction` or, for detection and segmentation, one `Detections` a picture, in their order. Boxes below
        `threshold`, if none is given the card's, are left out. Raises `ConceptError` for a threshold where whole
        pictures are classified, `DataError` for a picture that cannot be read.
        """
        parts = part_of(self.card.task, "infer")
        parts.refuse_predicting(self.card, threshold)
        with self.opened.lock:
            return parts.predict(self, self.backbone, images, batch_size, threshold)

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
        if self.card.task != "generation":
            raise ConceptError(f"`{self.card.concept}` is for {self.card.task}; use `predict`")
        with self.opened.lock:
            make = part_of(self.card.task, "infer").generate
            return make(self, lambda: self.backbone, prompt, n, seed, others or {}, guidance, steps)

    def join(self, *others: "OpenConcept", rename: Mapping[str, str] | None = None) -> "OpenConcept":
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
    def backbone(self) -> Backbone:
        """The base model on the Concept's device: opened and its hash checked at the first use, then the same one."""
        device = usable_device(self.device)
        backbone = self.opened.on(str(device), lambda: self.open_backbone(device))
        check_fit(self.card, self.tensors, backbone)
        return backbone

    def open_backbone(self, device: torch.device | str = "cpu") -> Backbone:
        """The base model, with the fine-tuned weights where there are any, opened anew for a caller that keeps it."""
        return open_base(self, device, self.find_base())

    def find_base(self) -> Path:
        """The folder where the base model should be; see `locate_base`, which looks at what is in it.

        It is fetched where its folder was given by hand, where the params.yaml here names it, and with `fetch`: a file
        from elsewhere does not decide what is fetched. Raises `NotFetched` otherwise, if it is not here already.
        """
        base = self.card.base
        may = self.fetch or self.base_folder is not None or is_named_here(base)
        return locate(str(self.base_folder or base.source), base.revision, fetch=may)

    def locate_base(self) -> Path:
        """The folder of the base model; `ConceptError` when it is another model than the one searched on."""
        folder = self.find_base()
        refuse_other_base(self, folder)
        return folder


def load(source: str | Path, base: str | Path | None = None, device: Any = "auto", fetch: bool = False) -> OpenConcept:
    """Open a Concept from a file, or from the registry as `models:/NAME@champion` or `models:/NAME/VERSION`.

    `base` is the folder of its base model, where that is not found by name; `device` is where that runs. A base model
    on the hub that the params.yaml here does not name is fetched with `fetch` only. Nothing is ever unpickled. Raises
    `ConceptError` for a file that is not a sound Concept.
    """
    if str(source).startswith("models:/"):
        from cones.registry.fetch import fetched_concept

        with fetched_concept(str(source)) as path:
            return _open(path, base, device, fetch)
    return _open(Path(source), base, device, fetch)


def _open(path: Path, base: str | Path | None, device: Any, fetch: bool) -> OpenConcept:
    concept = Concept.load(path, check_card)
    return in_use(concept, Path(base) if base else None, device, fetch)


def in_use(concept: Concept, base: Path | None = None, device: Any = "auto", fetch: bool = False) -> OpenConcept:
    """A Concept that is at hand, to be used; see `load`."""
    return OpenConcept(concept.card, concept.tensors, concept.weights_file, base, device, fetch)
