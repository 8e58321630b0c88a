"""A concept made ready for searching: features, names as the text encoder says them, what they came from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cones.backbones import locate, open_backbone
from cones.card import BaseModelCard
from cones.errors import DAMAGED, DataError
from cones.features import FeatureStore
from cones.files import path_hash, read_json
from cones.types import Backbone


@dataclass(frozen=True)
class Encoded:
    """What the `encode` stage left of a concept. `text` (C, d) is the template ensemble of each class."""

    folder: Path
    about: dict[str, Any]
    train: FeatureStore
    val: FeatureStore
    text: Tensor

    @staticmethod
    def open(folder: Path) -> "Encoded":
        """Read it all but the large arrays; `DataError` if it is missing or damaged."""
        from safetensors.torch import load_file

        if not (folder / "about.json").exists():
            raise DataError(f"{folder} is not encoded; run `dvc repro` to encode it")
        about = read_json(folder / "about.json")
        for part, written in about["hashes"].items():
            if not (folder / part).exists() or path_hash(folder / part) != written:
                raise DataError(f"{folder / part} is damaged: it is not what was written; {DAMAGED}")
        text = load_file(folder / "text.safetensors")["text"]
        return Encoded(folder, about, FeatureStore(folder / "train"), FeatureStore(folder / "val"), text)

    @property
    def base(self) -> BaseModelCard:
        return BaseModelCard.model_validate(self.about["base"])

    def backbone(self, device: Any = "cpu") -> Backbone:
        """The base model; its encoders load only when they are used."""
        folder = locate(self.base.source, self.base.revision)
        return open_backbone(self.base.kind, folder, device, logit_scale=self.about["logit_scale"])
