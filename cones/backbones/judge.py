"""Judges of likeness: how alike two pictures are to a model that had no part in making either of them.

`judge-tiny` for the generated world; for real pictures a DINO such as `facebook/dino-vits16` (Caron et al. 2021), as
DreamBooth's own evaluation has it (Ruiz et al. 2023, section 4.1).
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cones.backbones.hub import WEIGHTS
from cones.backbones.opening import opening, read_config, refuse_larger
from cones.common.errors import BackboneError

BATCH = 64


class Judge:
    """A frozen image encoder of transformers: a ViT's [CLS] token, or the pooled map of a ResNet."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        self.folder, self.device = folder, torch.device(device)
        kind = read_config(folder / "config.json").get("model_type")
        if kind not in ("vit", "resnet"):
            raise BackboneError(f"{folder} holds a `{kind}` model; a judge is a `vit` (DINO's) or a `resnet`")
        self.kind = kind

    @cached_property
    def model(self) -> Any:
        """The encoder, with its head where it has one."""
        from transformers import ResNetForImageClassification, ViTModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        cls: Any = ViTModel if self.kind == "vit" else ResNetForImageClassification
        how = {"add_pooling_layer": False} if self.kind == "vit" else {}
        with opening(self.folder):
            config = cls.config_class.from_pretrained(self.folder, local_files_only=True)
            refuse_larger(lambda: cls(config, **how), self.folder, WEIGHTS)
            model, report = cls.from_pretrained(
                self.folder,
                dtype=torch.float32,
                local_files_only=True,
                weights_only=True,
                output_loading_info=True,
                **how,
            )
        if report["missing_keys"]:
            raise BackboneError(f"the weights in {self.folder} do not fill it: {sorted(report['missing_keys'])[:5]}")
        return model.eval().requires_grad_(False).to(self.device)

    @cached_property
    def processor(self) -> Any:
        from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

        with opening(self.folder):
            return ViTImageProcessorPil.from_pretrained(self.folder, local_files_only=True)

    @torch.inference_mode()
    def features(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        """Features of unit length, whose products say how alike pictures are."""
        found = []
        for pixels in self._batches(pictures):
            if self.kind == "vit":
                found.append(self.model(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0])
            else:
                found.append(self.model.resnet(pixels).pooler_output.flatten(1))
        return F.normalize(torch.cat(found), dim=-1).cpu()

    @torch.inference_mode()
    def names(self, pictures: Sequence[Image.Image]) -> list[dict[str, str]]:
        """What `judge-tiny` calls the thing in each picture, by attribute: shape, colour, texture."""
        labels = [label.split(": ") for label in self.model.config.id2label.values()]
        logits = torch.cat([self.model(pixels).logits for pixels in self._batches(pictures)])
        told: list[dict[str, str]] = [{} for _ in pictures]
        for attribute in dict.fromkeys(name for name, _ in labels):
            places = [i for i, (name, _) in enumerate(labels) if name == attribute]
            for one, best in zip(told, logits[:, places].argmax(1).tolist()):
                one[attribute] = labels[places[best]][1]
        return told

    def _batches(self, pictures: Sequence[Image.Image]) -> list[Tensor]:
        chosen = [pictures[i : i + BATCH] for i in range(0, len(pictures), BATCH)]
        seen = ([p.convert("RGB") for p in some] for some in chosen)
        return [self.processor(some, return_tensors="pt")["pixel_values"].to(self.device) for some in seen]
