"""What a row of generation leaves: pictures on the way, and sentences in its Concept."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cones.common.files import fresh_file, write_picture
from cones.features.encoded import Encoded
from cones.interfaces.protocols import Paints, text_of
from cones.interfaces.texts import TextEmbeds
from cones.methods.searched import Method
from cones.visuals.sheets import picture_rows

WATCHED = 4
"""Samples at a time while a search is watched."""


@dataclass(frozen=True)
class Watch:
    """Samples of a sentence on the way, always of the same noise, as `<step>.jpg` in a folder; `every` counts what
    `unit` steps make."""

    sentence: Callable[[], Float[Tensor, "1 t d"]]
    backbone: Paints
    encoded: Encoded
    folder: Path
    every: int
    unit: int = 1

    @torch.no_grad()
    def __call__(self, done: int) -> None:
        """Sample if it is time to."""
        if done % self.every:
            return
        about, step = self.encoded.about, done * self.unit
        text = self.sentence()[:1].expand(WATCHED, -1, -1)
        how = (about["seed"], about["sampling_steps"], about["guidance"])
        pictures = self.backbone.sample(text, self.encoded.unconditional, *how)
        with fresh_file(self.folder / f"{step:06d}.jpg") as temporary:
            write_picture(temporary, picture_rows([(f"step {step}", pictures)]), quality=85)


def concept_tensors(text: TextEmbeds, encoded: Encoded) -> dict[str, Tensor]:
    """What a Concept of generation holds: see `ConceptCard.site`. Sentences are kept in half precision."""
    assert encoded.unconditional is not None, "a concept of generation is encoded with it"
    places = text.owner == 0
    embeds = text.embeds.detach()
    return {
        "text_embeds": embeds[0][places[0]].clone(),
        "owner": torch.zeros(int(places[0].sum()), dtype=torch.long),
        "sentences": embeds.half(),
        "places": places,
        "unconditional": encoded.unconditional.clone(),
    }


def watch_of(
    settings: Method, method: nn.Module, backbone: Paints, encoded: Encoded, folder: Path
) -> Callable[[int], None] | None:
    """What makes pictures after each of so many epochs; None where none are asked for."""
    every = getattr(settings, "sample_every", None)
    if every is None:
        return None
    steps_an_epoch = math.ceil(len(encoded.train) / getattr(settings, "batch_size", 1))
    names = encoded.about["names"]
    return Watch(lambda: text_of(method, backbone, names).embeds, backbone, encoded, folder, every, steps_an_epoch)
