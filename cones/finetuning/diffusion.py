"""DreamBooth (Ruiz et al. 2023): the UNet, or low-rank additions to it, learns a subject from a row's embeddings on."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from cones.common.console import progress_bar
from cones.common.layout import CACHE
from cones.concept.file import Concept
from cones.features.encoded import Encoded
from cones.finetuning.class_pictures import class_latents
from cones.finetuning.settings import Finetune
from cones.finetuning.steps import Metrics, finetune
from cones.finetuning.tuned import FinetunedRow, refuse_other_start, tuned_concept
from cones.interfaces.pictures import Features
from cones.interfaces.processes import gathered, share_of
from cones.interfaces.protocols import Backbone, Paints
from cones.interfaces.texts import TextEmbeds
from cones.methods.sentences import drawn_sentences
from cones.search.loop import OnLine
from cones.search.outcome import cost_of
from cones.search.trained import Trained
from cones.tasks.generation.row import Watch
from cones.tasks.parts import task_of
from cones.tasks.task import predict_all

if TYPE_CHECKING:
    from accelerate import Accelerator

LIBRARIES = ("peft",)


class Tuning(Finetune):
    """What the settings of a kind for diffusion models say besides; kinds have these fields of their own."""

    prior_weight: float
    sample_every: int | None

    @property
    def class_pictures(self) -> int:
        """How many pictures of the class word it goes on learning."""
        raise NotImplementedError


def finetune_row(
    name: str,
    settings: Tuning,
    start: Concept,
    encoded: Encoded,
    accelerator: "Accelerator",
    data: Path | None = None,
    checkpoint: Path | None = None,
    on_step: OnLine = lambda line: None,
    samples: Path | None = None,
    made: Features | None = None,
) -> FinetunedRow:
    """Fine-tune a Stable Diffusion on the latents that a row was searched on; the row's embeddings stay as they are.

    `made` are pictures of the class word that it goes on learning (section 3.2); pictures that the row asks for on the
    way go to the folder `samples`. Raises `ConceptError` for a start of other pictures or another base model, and
    `SearchError` when the loss is not finite.
    """
    refuse_other_start(start, encoded)
    about, device, task = encoded.about, accelerator.device, task_of("generation")
    backbone = cast(Paints, encoded.backbone(device))
    text, word = start.text.to(device), encoded.text.to(device)
    weights, built = settings.what_trains(backbone, encoded)
    objective = backbone.objective(settings)
    trained = Trained(weights, None, settings.validate_every).to(device)

    def loss_of(features: Features, generator: torch.Generator) -> Tensor:
        loss = objective(features, _drawn(text, features, generator), generator)
        if made is None:
            return loss
        rows = features.draw(lambda n: torch.randint(len(made.views), (n,), generator=generator))
        tensors = {n: t[rows] for n, t in made.tensors.items()}
        class_pictures = Features(tensors, made.views[rows], part=features.part).to(device)
        kept = objective(class_pictures, _drawn(word, class_pictures, generator), generator)
        return loss + settings.prior_weight * kept

    def metrics_of(model: Backbone) -> Metrics:
        mine = predict_all(model, encoded.val.batches(task.batch, share_of(accelerator)), text, task, device)
        return task.full(gathered(accelerator, mine), encoded.val, about["names"]).metrics

    watch: Callable[[int], None] = _watch_nothing
    if settings.sample_every and samples is not None:
        watch = Watch(lambda: text.embeds, backbone, encoded, samples, settings.sample_every)
    result = finetune(
        trained, loss_of, lambda: metrics_of(backbone), encoded.train, settings, about["seed"], accelerator,
        "generation", checkpoint, on_step, watch,
    )  # fmt: skip
    # Judged is what the file makes of the base model, where LoRA's additions are merged into the weights.
    judged = encoded.backbone(device)
    judged.use_weights(trained.tensors(), built)
    metrics = metrics_of(judged)
    embeds = start.tensors["text_embeds"]
    concept, content = tuned_concept(
        name, settings, start, "generation", trained, built, embeds, metrics, LIBRARIES if built else ()
    )
    cost = cost_of(encoded, result, trained.count, backbone.text_encoder_calls)
    return FinetunedRow(concept, result, metrics, cost, content)


def _watch_nothing(step: int) -> None:
    """Nothing is made on the way."""


def _drawn(text: TextEmbeds, features: Features, generator: torch.Generator) -> TextEmbeds:
    """A random sentence for each picture."""
    return text.at(drawn_sentences(len(text.embeds), features, generator))


def prepare(row: str, settings: Tuning, encoded: Encoded, device: Any) -> Features | None:
    """Latents of pictures that the base model makes of the class word, kept for other rows; None where none are
    wanted."""
    count = settings.class_pictures
    if not count:
        return None
    with progress_bar(f"pictures of the class word for {row}", count) as advance:
        latents = class_latents(encoded, count, device, CACHE, advance)
    return Features(latents, torch.zeros(count, dtype=torch.long))
