"""Fine-tuning a detector from a row: weights of the base model train on, and the row's embeddings with them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from cones.common.errors import BackboneError, DataError
from cones.concept.file import Concept
from cones.features.encoded import Encoded, encoded_pictures
from cones.features.live import LivePictures
from cones.features.store import FeatureStore
from cones.finetuning.settings import Finetune
from cones.finetuning.steps import Metrics, finetune
from cones.finetuning.tuned import FinetunedRow, refuse_other_start, tuned_concept
from cones.interfaces.pictures import Features, Pictures, Predictions
from cones.interfaces.processes import gathered, share_of
from cones.interfaces.protocols import Backbone, DrawsMasks, Grounding
from cones.interfaces.texts import TextEmbeds
from cones.methods.cones.module import Cones
from cones.search.loop import OnLine
from cones.search.outcome import cost_of
from cones.search.trained import Trained, parameters_of
from cones.tasks.parts import task_of
from cones.tasks.task import predict_all

if TYPE_CHECKING:
    from accelerate import Accelerator

    from cones.finetuning.settings import Trains


LIBRARIES = ("mmdet", "peft")


def prepare(row: str, settings: Finetune, encoded: Encoded, device: torch.device) -> None:
    """What is made before the fine-tuning begins: nothing."""


def finetune_row(
    name: str,
    settings: Finetune,
    start: Concept,
    encoded: Encoded,
    accelerator: "Accelerator",
    data: Path,
    checkpoint: Path | None = None,
    on_step: OnLine = lambda line: None,
    samples: Path | None = None,
    made: None = None,
) -> FinetunedRow:
    """Fine-tune from a row's Concept on the pictures it was searched on; `data` is where they are prepared.

    All modules stay in eval mode: running means hold, nothing drops out. `mask_head` is judged by its masks, whatever
    the concept's task. Raises `DataError`, `BackboneError` or `ConceptError` for a start, pictures or a base model that
    this kind is not defined on, and `SearchError` when the loss is not finite.
    """
    about, task, device = encoded.about, settings.judged_as(encoded.about["task"]), accelerator.device
    measures = task_of(task)
    backbone = cast(DrawsMasks, encoded.backbone(device, task))
    _refuse(name, settings, start, encoded, backbone.has_masks)
    prompts = Cones(start.text).to(device).requires_grad_(False)
    weights, built = settings.what_trains(backbone, encoded)
    trained = Trained(weights, None if settings.masks_only else prompts.embeds, settings.validate_every).to(device)
    objective = backbone.objective(settings)

    def text() -> TextEmbeds:
        return prompts(about["names"]).text_embeds

    def loss_of(features: Features, generator: torch.Generator) -> Tensor:
        return objective(features, text(), generator)

    def predictions_by(model: Backbone, pictures: Pictures) -> list[Predictions]:
        mine = predict_all(model, pictures.batches(measures.batch, share_of(accelerator)), text(), measures, device)
        return gathered(accelerator, mine)

    def metrics_of() -> Metrics:
        return measures.quick(predictions_by(backbone, val), encoded.val, about["names"])

    train, val = _pictures(settings, encoded, data, backbone)
    result = finetune(
        trained, loss_of, metrics_of, train, settings, about["seed"], accelerator, task, checkpoint, on_step
    )
    # Judged is what the file makes of the base model, where LoRA's additions are merged into the weights.
    judged = encoded.backbone(device, task)
    judged.use_weights(trained.tensors(), built)
    predictions = predictions_by(judged, val.by(cast(Grounding, judged)) if isinstance(val, LivePictures) else val)
    metrics = measures.full(predictions, encoded.val, about["names"]).metrics
    embeds = text().embeds[0].detach()
    concept, content = tuned_concept(name, settings, start, task, trained, built, embeds, metrics, LIBRARIES)
    cost = cost_of(encoded, result, trained.count, backbone.text_encoder_calls)
    return FinetunedRow(concept, result, metrics, cost, content)


def _refuse(name: str, settings: Finetune, start: Concept, encoded: Encoded, has_masks: bool) -> None:
    """What a kind of fine-tuning is not defined on, and a start of other pictures or of another base model."""
    about = encoded.about
    refuse_other_start(start, encoded)
    if settings.masks_only:
        if not (_learns_masks(encoded.train) and all(t.regions is not None for t in encoded.val.truths)):
            raise DataError(
                f"`kind: mask_head` learns masks, and pictures of `{about['concept']}` have objects without one; use "
                f"data with a mask for each object, or another kind (finetunes.{name}.kind)"
            )
    elif about["task"] == "segmentation" and not has_masks:
        raise BackboneError(
            f"`{about['concept']}` asks for masks, and its base model `{encoded.base.name}` has no mask head, nor does "
            f"`kind: {settings.kind}` give it one; `kind: mask_head` does (finetunes.{name}.kind)"
        )


def _learns_masks(store: FeatureStore) -> bool:
    """Whether its pictures have masks for a mask head to learn."""
    assert store.targets is not None, "these features carry no objects"
    return store.targets.batch([0], [0])[0][0].crops is not None


def parts_of(backbone: DrawsMasks, encoded: Encoded, parts: Sequence[str]) -> "Trains":
    """All parameters of some parts; a mask head only where there is one, and masks to learn."""
    masks = backbone.has_masks and _learns_masks(encoded.train)
    return parameters_of({part: backbone.part(part) for part in parts if part != "mask_head" or masks}), {}


def mask_head_of(backbone: DrawsMasks, encoded: Encoded) -> "Trains":
    """The parameters of the mask head, and the settings of one that the base model has not."""
    built = {} if backbone.has_masks else {"mask_head": backbone.add_mask_head(encoded.about["seed"])}
    return parts_of(backbone, encoded, ("mask_head",))[0], built


def _pictures(settings: Finetune, encoded: Encoded, data: Path, backbone: Grounding) -> tuple[Pictures, Pictures]:
    """The training and the validation pictures, as this kind of fine-tuning takes them."""
    if settings.keeps_features:
        return encoded.train, encoded.val
    canvas = tuple(encoded.about["canvas"])
    changes = (getattr(settings, "least_scale", 1.0), getattr(settings, "colour_jitter", 0.0))
    (train, shown), (val, held) = encoded_pictures(encoded, data)
    return (
        LivePictures(encoded.train, train, shown, backbone, canvas, *changes),
        LivePictures(encoded.val, val, held, backbone, canvas, *changes),
    )
