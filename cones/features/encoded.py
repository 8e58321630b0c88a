"""A concept made ready for searching: features, names as the text encoder says them, what they came from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from cones.backbones import family_of, open_backbone
from cones.backbones.hub import locate
from cones.common.errors import DAMAGED, DataError
from cones.common.files import content_hash, read_json
from cones.common.intact import damaged_parts
from cones.data.prepared import Split, records_hash
from cones.features.store import FeatureStore
from cones.interfaces.base import BaseModelCard
from cones.interfaces.protocols import Backbone, DualEncoder
from cones.interfaces.texts import TextEmbeds


class Parts(BaseModel):
    """SHA-256 of what belongs to an encoded concept, by the names of files and folders."""

    train: str
    val: str
    text: str = Field(alias="text.safetensors")


class About(BaseModel):
    """What `about.json` holds in any case; what a task or a base model is told beside it stands there, too."""

    concept: str
    task: str
    classes: list[str]
    names: list[str]
    templates: list[str]
    base: BaseModelCard
    preprocessing: dict[str, Any]
    shots: int | None
    seed: int
    split_hash: str
    val_hash: str
    hashes: Parts


@dataclass(frozen=True)
class Encoded:
    """What the `encode` stage left of a concept. `text` is what the text encoder says of its names: for CLIP the
    template ensemble of each class, for GLIP the tokens of a caption of all names, for Stable Diffusion each template
    with the class word. In generation there are `unconditional` (1, T, d), what it says of no text, and `seen` (d,),
    the mean feature of the training pictures to the concept's CLIP."""

    folder: Path
    about: dict[str, Any]
    train: FeatureStore
    val: FeatureStore
    text: TextEmbeds
    unconditional: Tensor | None = None
    seen: Tensor | None = None

    @staticmethod
    def open(folder: Path) -> "Encoded":
        """Read it all but the large arrays; `DataError` if it is missing or damaged.

        Arrays that were found sound are not read again to see whether they are, as long as no file of theirs changes.
        """
        from safetensors.torch import load_file

        if not (folder / "about.json").exists():
            raise DataError(f"{folder} is not encoded; run `dvc repro` to encode it")
        about = read_json(folder / "about.json", About)
        for part in damaged_parts(folder, about["hashes"]):
            raise DataError(f"{folder / part} is damaged: it is not what was written; {DAMAGED}")
        tensors = load_file(folder / "text.safetensors")
        embeds = tensors["text"] if tensors["text"].ndim == 3 else tensors["text"][None]
        text = TextEmbeds(
            embeds, torch.ones(embeds.shape[:2], dtype=torch.bool), tensors["owner"], tensors.get("pooled")
        )
        stores = FeatureStore(folder / "train"), FeatureStore(folder / "val")
        return Encoded(folder, about, *stores, text, tensors.get("unconditional"), tensors.get("seen"))

    @property
    def base(self) -> BaseModelCard:
        return BaseModelCard.model_validate(self.about["base"])

    @property
    def family(self) -> str:
        """That of its base model."""
        return family_of(self.base.kind)

    def clip(self, device: Any = "cpu") -> DualEncoder:
        """The CLIP of a concept of generation."""
        about = self.about["clip"]
        return cast(DualEncoder, open_backbone("clip", locate(about["source"], about["revision"]), device))

    def backbone(self, device: Any = "cpu", task: str | None = None) -> Backbone:
        """The base model for a task, if none is given the concept's; its encoders load only when they are used."""
        folder = locate(self.base.source, self.base.revision)
        known = {"logit_scale": self.about["logit_scale"]} if "logit_scale" in self.about else {}
        return open_backbone(self.base.kind, folder, device, task or self.about["task"], **known)


def encoded_pictures(encoded: Encoded, data: Path) -> list[tuple[Split, list[int]]]:
    """The splits with the training and the validation pictures of an encoded concept, and which of theirs these are.

    `data` is where they are prepared; `DataError` where that holds other ones.
    """
    found, hashes = [], {}
    for name, store in (("train", encoded.train), ("val", encoded.val)):
        split = Split.open(data / name)
        places = {record.id: i for i, record in enumerate(split.records)}
        rows = [places[i] for i in store.ids if i in places]
        hashes[name] = records_hash([split.records[i] for i in rows])
        found.append((split, rows))
    if content_hash(hashes) != encoded.about["split_hash"]:
        raise DataError(f"{data} does not hold the pictures that were encoded; run `dvc repro` to encode them again")
    return found
