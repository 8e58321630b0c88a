"""DreamBooth (Ruiz et al. 2023): the UNet, or low-rank additions to it, learns a subject from a row's embeddings on."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cones.common.layout import CACHE
from cones.concept.file import Concept
from cones.features.encoded import Encoded
from cones.finetuning.class_pictures import class_latents
from cones.finetuning.lora import LORA_SCALE, add_lora, attention_layers
from cones.finetuning.settings import FinetuneConfig
from cones.finetuning.tuned import FinetunedRow, refuse_other_start, tuned_concept
from cones.interfaces.pictures import Features
from cones.interfaces.texts import TextEmbeds
from cones.methods.sentences import drawn_sentences
from cones.search.outcome import cost_of
from cones.search.trained import Trained, parameters_of
from cones.search.tuning import Metrics, OnStep, finetune
from cones.tasks.generation.row import Watch, watch_nothing
from cones.tasks.table import TASKS
from cones.tasks.task import predict_all

if TYPE_CHECKING:
    from accelerate import Accelerator

LIBRARIES = ("peft",)
PUBLISHED_PRIOR = 200


def dreambooth_row(
    name: str,
    settings: FinetuneConfig,
    start: Concept,
    encoded: Encoded,
    accelerator: "Accelerator",
    prior: Features | None,
    checkpoint: Path | None = None,
    on_step: OnStep = lambda line: None,
    samples: Path | None = None,
) -> FinetunedRow:
    """Fine-tune a Stable Diffusion on the latents that a row was searched on; the row's embeddings stay as they are.

    `prior` are pictures of the class word that it goes on learning (section 3.2); pictures that the row asks for on the
    way go to the folder `samples`. Raises `ConceptError` for a start of other pictures or another base model, and
    `SearchError` when the loss is not finite.
    """
    refuse_other_start(start, encoded)
    about, device, task = encoded.about, accelerator.device, TASKS["generation"]
    backbone: Any = encoded.backbone(device)
    if settings.noise is not None:
        backbone.draw_noise(**settings.noise.model_dump())
    text, word = start.text.to(device), encoded.text.to(device)
    built: dict[str, Any] = {}
    if settings.kind == "lora":
        layers = attention_layers(backbone.unet)
        weights = add_lora("unet", backbone.unet, settings.rank, about["seed"], layers)
        built = {"lora_scale": LORA_SCALE}
    else:
        weights = parameters_of({"unet": backbone.unet})
    if settings.gradient_checkpointing:
        backbone.save_memory()
    trained = Trained(weights, None, settings.validate_every).to(device)

    def loss_of(features: Features, generator: torch.Generator) -> Tensor:
        loss = backbone.loss(features, _drawn(text, features, generator), generator)
        if prior is None:
            return loss
        rows = torch.randint(len(prior.views), (len(features.views),), generator=generator)
        class_pictures = Features({n: t[rows] for n, t in prior.tensors.items()}, prior.views[rows]).to(device)
        kept = backbone.loss(class_pictures, _drawn(word, class_pictures, generator), generator)
        return loss + settings.prior_weight * kept

    def metrics_of(model: Any) -> Metrics:
        found = predict_all(model, encoded.val.batches(task.batch), text, task, device)
        return task.full(found, encoded.val, about["names"]).metrics

    watch: Callable[[int], None] = watch_nothing
    if settings.sample_every and samples is not None:
        watch = Watch(lambda: text.embeds, backbone, encoded, samples, settings.sample_every)
    result = finetune(
        trained, loss_of, lambda: metrics_of(backbone), encoded.train, settings, about["seed"], accelerator,
        "generation", checkpoint, on_step, watch,
    )  # fmt: skip
    # Judged is what the file makes of the base model, where LoRA's additions are merged into the weights.
    judged: Any = encoded.backbone(device)
    judged.use_weights(trained.tensors(), built)
    metrics = metrics_of(judged)
    embeds = start.tensors["text_embeds"]
    concept, content = tuned_concept(
        name, settings, start, "generation", trained, built, embeds, metrics, LIBRARIES if built else ()
    )
    cost = cost_of(encoded, result, trained.count, backbone.text_encoder_calls)
    return FinetunedRow(concept, result, metrics, cost, content)


def _drawn(text: TextEmbeds, features: Features, generator: torch.Generator) -> TextEmbeds:
    """A random sentence for each picture."""
    return text.at(drawn_sentences(len(text.embeds), features, generator))


def prior_count(settings: FinetuneConfig) -> int:
    """How many pictures of the class word a fine-tuning goes on learning."""
    if settings.prior_pictures is not None:
        return settings.prior_pictures
    return PUBLISHED_PRIOR if settings.kind == "dreambooth" else 0


def class_pictures(
    settings: FinetuneConfig, encoded: Encoded, device: Any, on_batch: Callable[[int], None] = lambda done: None
) -> Features | None:
    """Latents of pictures that the base model makes of the class word, kept for other rows; None where none are wanted.

    `on_batch` is told how many were made.
    """
    count = prior_count(settings)
    if not count:
        return None
    return Features(class_latents(encoded, count, device, CACHE, on_batch), torch.zeros(count, dtype=torch.long))
