"""What rows of generation have that others have not: noise, pictures on the way, sentences in their Concepts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cones.common.files import fresh_file, write_picture
from cones.features.encoded import Encoded
from cones.interfaces.protocols import text_of
from cones.interfaces.texts import TextEmbeds
from cones.methods.searched import Denoised
from cones.visuals.sheets import picture_rows

WATCHED = 4
"""Samples at a time while a search is watched."""


def watch_nothing(epoch: int) -> None:
    """Watch a search without doing anything."""


def sentences_of(method: nn.Module, backbone: Any, names: Sequence[str]) -> Tensor:
    """What a method makes of each template, now."""
    return text_of(method, backbone, names).embeds


def set_up(settings: Denoised, backbone: Any) -> None:
    """Set how a Stable Diffusion draws its noise and uses memory."""
    if settings.noise is not None:
        backbone.draw_noise(**settings.noise.model_dump())
    if settings.gradient_checkpointing:
        backbone.save_memory()


@dataclass(frozen=True)
class Watch:
    """Samples of a sentence on the way, always of the same noise, as `<step>.jpg` in a folder; `every` counts what
    `unit` steps make."""

    sentence: Callable[[], Float[Tensor, "1 t d"]]
    backbone: Any
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


def sentence_tensors(text: TextEmbeds, encoded: Encoded) -> dict[str, Tensor]:
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
