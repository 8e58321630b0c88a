"""Fine-tuning a row: weights of the base model train on, and the row's embeddings with them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cones.common.errors import BackboneError, DataError
from cones.common.files import content_hash
from cones.concept.file import Concept
from cones.data.prepared import Split, records_hash
from cones.features.encoded import Encoded
from cones.features.live import LivePictures, Pictures
from cones.features.store import FeatureStore
from cones.finetuning.lora import LORA_SCALE, add_lora
from cones.finetuning.settings import KEEPS_FEATURES, FinetuneConfig
from cones.finetuning.tuned import FinetunedRow, refuse_other_start, tuned_concept
from cones.interfaces.pictures import Features, Predictions
from cones.methods.cones.module import Cones
from cones.search.outcome import cost_of
from cones.search.trained import Trained, parameters_of
from cones.search.tuning import Metrics, OnStep, finetune
from cones.tasks.table import TASKS
from cones.tasks.task import predict_all

if TYPE_CHECKING:
    from accelerate import Accelerator


KIND_PARTS = {
    "head": ("bbox_head", "mask_head"),
    "full": ("backbone", "neck", "bbox_head", "mask_head"),
    "mask_head": ("mask_head",),
}
"""The parts of a detector whose parameters all train, by the kind of fine-tuning; a part that is not there is left out.
`lora` trains additions to the linear layers of `bbox_head`."""


LIBRARIES = ("mmdet", "peft")


def finetune_row(
    name: str,
    settings: FinetuneConfig,
    start: Concept,
    encoded: Encoded,
    accelerator: "Accelerator",
    data: Path,
    checkpoint: Path | None = None,
    on_step: OnStep = lambda line: None,
) -> FinetunedRow:
    """Fine-tune from a row's Concept on the pictures it was searched on; `data` is where they are prepared.

    All modules stay in eval mode: running means hold, nothing drops out. `mask_head` is judged by its masks, whatever
    the concept's task. Raises `DataError`, `BackboneError` or `ConceptError` for a start, pictures or a base model that
    this kind is not defined on, and `SearchError` when the loss is not finite.
    """
    about, task, device = encoded.about, judged_as(settings, encoded), accelerator.device
    masks_only = settings.kind == "mask_head"
    backbone: Any = encoded.backbone(device, task)
    _refuse(name, settings, start, encoded, backbone.has_masks)
    prompts = Cones(start.text).to(device).requires_grad_(False)
    weights, built = _what_trains(settings, encoded, backbone)
    trained = Trained(weights, None if masks_only else prompts.embeds, settings.validate_every).to(device)

    def loss_of(features: Features, generator: torch.Generator) -> Tensor:
        return (backbone.mask_loss if masks_only else backbone.loss)(features, prompts(about["names"]).text_embeds)

    def found_by(model: Any, pictures: Pictures) -> list[Predictions]:
        text = prompts(about["names"]).text_embeds
        return predict_all(model, pictures.batches(TASKS[task].batch), text, TASKS[task], device)

    def metrics_of() -> Metrics:
        return TASKS[task].quick(found_by(backbone, val), encoded.val, about["names"])

    train, val = _pictures(settings, encoded, data, backbone)
    result = finetune(
        trained, loss_of, metrics_of, train, settings, about["seed"], accelerator, task, checkpoint, on_step
    )
    # Judged is what the file makes of the base model, where LoRA's additions are merged into the weights.
    judged: Any = encoded.backbone(device, task)
    judged.use_weights(trained.tensors(), built)
    found = found_by(judged, val.by(judged) if isinstance(val, LivePictures) else val)
    metrics = TASKS[task].full(found, encoded.val, about["names"]).metrics
    text = prompts(about["names"]).text_embeds.embeds[0].detach()
    concept, content = tuned_concept(name, settings, start, task, trained, built, text, metrics, LIBRARIES)
    cost = cost_of(encoded, result, trained.count, backbone.text_encoder_calls)
    return FinetunedRow(concept, result, metrics, cost, content)


def judged_as(settings: FinetuneConfig, encoded: Encoded) -> str:
    """The task that a fine-tuned row is judged by: a mask head gives masks where the concept asks for boxes, too."""
    return "segmentation" if settings.kind == "mask_head" else encoded.about["task"]


def _refuse(name: str, settings: FinetuneConfig, start: Concept, encoded: Encoded, has_masks: bool) -> None:
    """What a kind of fine-tuning is not defined on, and a start of other pictures or of another base model."""
    about = encoded.about
    refuse_other_start(start, encoded)
    if settings.kind == "mask_head":
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


def _what_trains(
    settings: FinetuneConfig, encoded: Encoded, backbone: Any
) -> tuple[dict[str, nn.Parameter], dict[str, Any]]:
    """The weights that train, by their names, and what must be known to use them."""
    seed = encoded.about["seed"]
    if settings.kind == "lora":
        head = backbone.part("bbox_head")
        return add_lora("bbox_head", head, settings.rank, seed), {"lora_scale": LORA_SCALE}
    built = {}
    if settings.kind == "mask_head" and not backbone.has_masks:
        built["mask_head"] = backbone.add_mask_head(seed)
    masks = backbone.has_masks and _learns_masks(encoded.train)
    parts = [part for part in KIND_PARTS[settings.kind] if part != "mask_head" or masks]
    return parameters_of({part: backbone.part(part) for part in parts}), built


def _pictures(settings: FinetuneConfig, encoded: Encoded, data: Path, backbone: Any) -> tuple[Pictures, Pictures]:
    """The training and the validation pictures, as this kind of fine-tuning takes them."""
    if KEEPS_FEATURES[settings.kind]:
        return encoded.train, encoded.val
    live, hashes = [], {}
    for name, store in (("train", encoded.train), ("val", encoded.val)):
        split = Split.open(data / name)
        places = {record.id: i for i, record in enumerate(split.records)}
        rows = [places[i] for i in store.ids if i in places]
        hashes[name] = records_hash([split.records[i] for i in rows])
        canvas = tuple(encoded.about["canvas"])
        live.append(LivePictures(store, split, rows, backbone, canvas, settings.least_scale, settings.colour_jitter))
    if content_hash(hashes) != encoded.about["split_hash"]:
        raise DataError(f"{data} does not hold the pictures that were encoded; run `dvc repro` to encode them again")
    return live[0], live[1]
