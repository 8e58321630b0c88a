"""Textual inversion as published (Gal et al. 2022; the example of diffusers), or with less work in a step.

The pictures of a step go through it one after the other. The loss is that of all rungs, the library's: with min-SNR
weights, where the example has a plain mean square.
"""

import math
from typing import Any

import torch
from PIL import Image, ImageOps
from t2i_rungs import PUBLISHED_PICTURES, WEIGHT_DECAY
from torch import nn

from cones.backbones.sd.text import Sentences, encode_sentences
from cones.features.encoded import Encoded
from cones.interfaces.pictures import Features
from cones.interfaces.texts import TextEmbeds

PUBLISHED_RATE = 5e-4
"""For one picture a step; its authors multiply it by the pictures of a step."""


class NewToken:
    """The token table of a text encoder as a parameter `weight` (V + 1, d), whose last row is a new token that starts
    from a word; `close` gives the encoder its own table back."""

    def __init__(self, sd: Any, word: str) -> None:
        self._embedding = sd.text_encoder.embeddings.token_embedding
        self._before = self._embedding.weight
        self.original = torch.cat([self._before.detach(), sd.word_vectors(word)[:1]])
        self.weight = self._embedding.weight = nn.Parameter(self.original.clone())
        self.place = len(self._before)

    def close(self) -> None:
        self._embedding.weight = self._before


class Inversion:
    """Textual inversion. With `pictures` each goes through the autoencoder whenever it is shown, else its kept latent
    is taken; with `table` the whole token table is trained and put back but for its new row, else the row alone. A step
    shows `at_a_step` pictures; with `falls_over` the rate falls to zero over so many steps, as the library's does."""

    def __init__(
        self,
        sd: Any,
        encoded: Encoded,
        word: str,
        rate: float,
        pictures: list[Image.Image] | None,
        table: bool,
        at_a_step: int = PUBLISHED_PICTURES,
        falls_over: int | None = None,
    ) -> None:
        self.sd, self.train, self.rate = sd, encoded.train, rate
        self.at_a_step, self.falls_over = at_a_step, falls_over
        self.sentences = Sentences.build(sd.tokenizer, encoded.about["templates"], {"": 1})
        shown = [(p, ImageOps.mirror(p)) for p in pictures or ()]
        self.pixels = [[sd.pixels([view]) for view in views] for views in shown]
        self.table = NewToken(sd, word) if table else None
        if self.table is None:
            self.trained = nn.Parameter(sd.word_vectors(word)[:1])
        else:
            self.trained = self.table.weight
            self.ids = torch.where(self.sentences.ids < 0, self.table.place, self.sentences.ids)
        self.optimiser = torch.optim.AdamW([self.trained], rate, weight_decay=WEIGHT_DECAY)

    def text(self, rows: slice = slice(None)) -> TextEmbeds:
        """What the encoder says of some sentences."""
        sentences = Sentences(self.sentences.ids[rows], self.sentences.owner[rows])
        if self.table is None:
            embeds = encode_sentences(self.sd.text_encoder, sentences, [self.trained])
        else:
            embeds = self.sd.text_encoder(self.ids[rows]).last_hidden_state
        return TextEmbeds(embeds, torch.ones(embeds.shape[:2], dtype=torch.bool), sentences.owner)

    def step(self, number: int, generator: torch.Generator) -> None:
        """One optimiser step, the `number`-th, counted from 1."""
        if self.falls_over is not None:
            share = 0.5 * (1 + math.cos(math.pi * (number - 1) / self.falls_over))
            self.optimiser.param_groups[0]["lr"] = self.rate * share
        for part in range(self.at_a_step):
            place = (number * self.at_a_step + part) % len(self.train)
            flip = int(torch.randint(2, (1,), generator=generator))
            if self.pixels:
                features = Features(dict(self.sd.encode(self.pixels[place][flip])), torch.tensor([flip]))
            else:
                features = self.train.batch(torch.tensor([place]), torch.tensor([flip]))
            told = int(torch.randint(len(self.sentences.ids), (1,), generator=generator))
            (self.sd.objective()(features, self.text(slice(told, told + 1)), generator) / self.at_a_step).backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        if self.table is not None:
            with torch.no_grad():
                self.trained[: self.table.place] = self.table.original[: self.table.place]

    def close(self) -> None:
        if self.table is not None:
            self.table.close()
