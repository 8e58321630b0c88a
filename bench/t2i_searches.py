"""The searches of `t2i.py`: the pictures, the base model and what judges, and a run by each recipe."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from t2i_inversion import Inversion
from t2i_rungs import PICTURES, Recipe, settings_of
from torch import Tensor

from cones.backbones.judge import Judge
from cones.backbones.sd.settings import DiffusionModel
from cones.backbones.settings import ModelSource
from cones.config.params import parse_method
from cones.data.prepared import Split
from cones.features.encoded import Encoded
from cones.interfaces.protocols import text_of
from cones.interfaces.randomness import generator_for
from cones.interfaces.texts import TextEmbeds
from cones.methods.searched import Denoised
from cones.readers.prepare import prepare
from cones.readers.world import SubjectWorldData
from cones.search.epochs import search
from cones.search.row import _start
from cones.tasks.encode import draw, encode_concept
from cones.tasks.generation.measure import likeness
from cones.tasks.generation.settings import GenerationConcept

TINY = Path("models/backbones")
WORD = "flower"
SAMPLES, GUIDANCE, SAMPLING = 24, 4.0, 20


@dataclass(frozen=True)
class Look:
    """What a search had after some steps and seconds: its first sentence (1, T, d), and the held-out loss of all."""

    steps: int
    seconds: float
    loss: float
    sentence: Tensor


OnLook = Callable[[Look], bool]
"""Is told each look; True ends the search."""


class Stopwatch:
    """Seconds of this process on the CPU since it was made, without those spent aside: on one thread those of a clock,
    whatever else the machine does."""

    def __init__(self) -> None:
        self._began = time.process_time()

    @property
    def seconds(self) -> float:
        return time.process_time() - self._began

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Do not count what is done within."""
        left = time.process_time()
        try:
            yield
        finally:
            self._began += time.process_time() - left


class Enough(Exception):
    """Ends a search of the library from within."""


class Bench:
    """The pictures, the base model and what judges."""

    def __init__(self, work: Path) -> None:
        data = SubjectWorldData(kind="subject_world", thing="zorb", colour="purple", train=PICTURES, val=20, test=20)
        prepare(data, work / "prepared")
        beside = {n: ModelSource(source=str(TINY / f"{n}-tiny")) for n in ("clip", "judge")}
        backbone = DiffusionModel(kind="sd", source=str(TINY / "sd-tiny"), **beside)
        concept = GenerationConcept(
            task="generation", backbone="sd-tiny", data="zorb", word=WORD, min_crop=1.0, views=2
        )
        drawn = draw(concept, work / "prepared")
        self.encoded: Encoded = encode_concept("zorb", concept, backbone, drawn, work / "encoded")
        self.sd: Any = self.encoded.backbone()
        train = Split.open(work / "prepared/train")
        self.pictures = [train.picture(i) for i in range(len(train.records))]
        held = Split.open(work / "prepared/val")
        self.judge = Judge(TINY / "judge-tiny")
        self.subject = self.judge.features([held.picture(i) for i in range(len(held.records))])
        self.accelerator = Accelerator(cpu=True)

    def held_loss(self, text: TextEmbeds) -> float:
        """The loss of the held-out pictures on the fixed batch."""
        held = next(self.encoded.val.batches(100))
        return -float(self.sd.predict(held, text.in_turns(len(held.views))).scores.mean())

    def likeness(self, sentence: Tensor) -> float:
        """The judge's likeness of samples of one sentence, always of the same noise."""
        text = sentence.expand(SAMPLES, -1, -1)
        made = self.sd.sample(text, self.encoded.unconditional, 0, SAMPLING, GUIDANCE)
        return likeness(self.judge.features(made), self.subject)

    def run(self, recipe: Recipe, rate: float, seed: int, steps: int, every: int, on_look: OnLook) -> None:
        """Search by a recipe, with a look each `every` steps, for `steps` steps or until a look ends it."""
        if recipe.loop == "library":
            self._library(recipe, rate, seed, steps, every, on_look)
        else:
            self._published(recipe, rate, seed, steps, every, on_look)

    def inversion(self, recipe: Recipe, rate: float, steps: int) -> Inversion:
        """The published loop's step, by a recipe, of a search over so many steps."""
        pictures = self.pictures if recipe.latents == "encoded when shown" else None
        table, falls_over = recipe.trained == "token table", steps if recipe.rate == "falling" else None
        return Inversion(self.sd, self.encoded, WORD, rate, pictures, table, recipe.pictures, falls_over)

    def _published(self, recipe: Recipe, rate: float, seed: int, steps: int, every: int, on_look: OnLook) -> None:
        watch, inversion = Stopwatch(), self.inversion(recipe, rate, steps)
        try:
            for step in range(1, steps + 1):
                inversion.step(step, generator_for(seed, step))
                if step % every and step < steps:
                    continue
                with nullcontext() if recipe.stops else watch.aside(), torch.no_grad():
                    text = inversion.text(slice(len(self.encoded.val)))  # as many as the library's loop encodes
                    loss = self.held_loss(text)
                with watch.aside():
                    if on_look(Look(step, watch.seconds, loss, text.embeds[:1].clone())):
                        return
        finally:
            inversion.close()

    def _library(self, recipe: Recipe, rate: float, seed: int, steps: int, every: int, on_look: OnLook) -> None:
        settings = parse_method(settings_of(recipe, rate, steps, every))
        assert isinstance(settings, Denoised), "textual inversion and ConES have these settings"
        watch = Stopwatch()
        method = settings.build(self.sd, _start(self.encoded, self.sd, [WORD]))

        def look(line: dict[str, float]) -> None:
            if "val_denoising_loss" not in line:
                return
            seconds = watch.seconds
            with watch.aside(), torch.no_grad():
                sentence = text_of(method, self.sd, [WORD]).embeds[:1].clone()
                if on_look(Look(int(line["step"]), seconds, line["val_denoising_loss"], sentence)):
                    raise Enough

        stores = (self.encoded.train, self.encoded.val)
        with suppress(Enough):
            search(method, self.sd, [WORD], *stores, settings, seed, self.accelerator, None, look, "generation")
