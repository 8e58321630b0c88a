"""Fine-tuning CLIP from a row: its encoders train on, on pictures that are encoded anew."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from cones.common.errors import ConceptError
from cones.concept.file import Concept
from cones.features.encoded import Encoded
from cones.finetuning.settings import Encoders, Finetune
from cones.finetuning.steps import Metrics, finetune
from cones.finetuning.tuned import FinetunedRow, refuse_other_start, tuned_concept
from cones.interfaces.pictures import WHOLE, Features, Pictures, Predictions, Share
from cones.interfaces.processes import gathered, share_of
from cones.interfaces.protocols import Backbone
from cones.interfaces.texts import TextEmbeds
from cones.methods.cones.module import Cones
from cones.search.loop import OnLine
from cones.search.outcome import cost_of
from cones.search.trained import Trained
from cones.tasks.parts import task_of
from cones.tasks.task import predict_all

if TYPE_CHECKING:
    from accelerate import Accelerator

LIBRARIES = ("peft",)
Live = Callable[[Encoded, Backbone, Callable[[], Tensor | None]], tuple[Pictures, Pictures]]
"""Training and validation pictures that are encoded anew, given the visual tokens that they are encoded with."""


class Tuning(Finetune):
    """What the settings of a kind for dual encoders say besides; kinds have these fields of their own."""

    encoders: Encoders


def prepare(row: str, settings: Finetune, encoded: Encoded, device: torch.device) -> None:
    """What is made before the fine-tuning begins: nothing."""


def finetune_row(
    name: str,
    settings: Tuning,
    start: Concept,
    encoded: Encoded,
    accelerator: "Accelerator",
    data: Path,
    checkpoint: Path | None = None,
    on_step: OnLine = lambda line: None,
    samples: Path | None = None,
    made: None = None,
    live: Live | None = None,
) -> FinetunedRow:
    """Fine-tune from a row's Concept on the pictures it was searched on, which `live` encodes anew.

    From a zero-shot row the text encoder says the class names at every step, and may train. The embeddings of any other
    row go on training themselves, and its visual tokens stay. Raises `ConceptError` for a start of other pictures or
    another base model and for one that this is not defined from, and `SearchError` when the loss is not finite.
    """
    assert live is not None, "the stage gives the pictures"
    about, device, measures = encoded.about, accelerator.device, task_of(encoded.about["task"])
    backbone, spoken = encoded.backbone(device), start.card.method["name"] == "zero_shot"
    _refuse(name, settings, start, encoded, spoken)
    chosen = settings if spoken else settings.model_copy(update={"encoders": "image"})
    weights, built = chosen.what_trains(backbone, encoded)
    prompts = Cones(start.text).to(device).requires_grad_(False)
    trained = Trained(weights, None if spoken else prompts.embeds, settings.validate_every).to(device)
    objective, names, share = backbone.objective(settings), start.card.names, share_of(accelerator)
    dropouts = [m for m in backbone.part("").modules() if isinstance(m, nn.Dropout) and m.p]

    def pictures_by(model: Backbone) -> tuple[Pictures, Pictures]:
        if chosen.encoders == "text":
            return encoded.train, encoded.val
        return live(encoded, model, lambda: start.visual_tokens)

    def text_by(model: Backbone) -> TextEmbeds:
        return model.embed_text(names, templates=about["templates"]) if spoken else prompts(names).text_embeds

    def loss_of(features: Features, generator: torch.Generator) -> Tensor:
        with dropping(dropouts, generator, share):
            text = text_by(backbone)
        return objective(features, text, generator)

    @torch.no_grad()
    def predictions_by(model: Backbone, val: Pictures) -> list[Predictions]:
        mine = predict_all(model, val.batches(measures.batch, share), text_by(model), measures, device)
        return gathered(accelerator, mine)

    def metrics_of() -> Metrics:
        return measures.quick(predictions_by(backbone, val), encoded.val, names)

    train, val = pictures_by(backbone)
    result = finetune(
        trained, loss_of, metrics_of, cast(Pictures, Dropping(train, dropouts)), settings, about["seed"], accelerator,
        about["task"], checkpoint, on_step,
    )  # fmt: skip
    # Judged is what the file makes of the base model, where LoRA's additions are merged into the weights.
    judged = encoded.backbone(device)
    judged.use_weights(trained.tensors(), built)
    metrics = measures.full(predictions_by(judged, pictures_by(judged)[1]), encoded.val, names).metrics
    with torch.no_grad():
        text = text_by(judged)
    concept, content = tuned_concept(
        name, settings, start, about["task"], trained, built, text.embeds[0], metrics, LIBRARIES if built else ()
    )
    tensors = {"text_embeds": text.embeds[0].detach().clone(), "owner": text.owner.cpu()}
    if start.visual_tokens is not None:
        tensors["visual_tokens"] = start.visual_tokens
    concept = Concept(concept.card.model_copy(update={"site": "text_embeds"}), tensors)
    cost = cost_of(encoded, result, trained.count, backbone.text_encoder_calls)
    return FinetunedRow(concept, result, metrics, cost, content)


@contextmanager
def dropping(dropouts: Sequence[nn.Module], generator: torch.Generator, share: Share = WHOLE) -> Iterator[None]:
    """Within it dropout is on, and what it drops comes from the generator, in each of several processes something
    else."""
    if not dropouts:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)) + share.process)
        for layer in dropouts:
            layer.train()
        try:
            yield
        finally:
            for layer in dropouts:
                layer.eval()


@dataclass(frozen=True)
class Dropping:
    """Training pictures that are encoded with dropout on."""

    pictures: Pictures
    dropouts: Sequence[nn.Module]

    def __len__(self) -> int:
        return len(self.pictures)

    def sample(self, size: int, generator: torch.Generator, share: Share = WHOLE) -> Features:
        """A batch to train on: different pictures drawn at random, each in a random view; what a share has of it."""
        with dropping(self.dropouts, generator, share):
            return self.pictures.sample(size, generator, share)


def _refuse(name: str, settings: Tuning, start: Concept, encoded: Encoded, spoken: bool) -> None:
    """A start of other pictures or another base model, and one that this is not defined from."""
    refuse_other_start(start, encoded)
    method = start.card.method["name"]
    if {"bias", "keys"} & set(start.tensors):
        raise ConceptError(
            f"`{start.card.row}` was found by {method}, which goes by features of the encoders as they were; start "
            f"from a row of embeddings or prompts, or from zero_shot (finetunes.{name}.from)"
        )
    if start.card.needs_text_encoder:
        raise ConceptError(
            f"`{start.card.row}` gives each picture a text of its own by {method}, which goes by features of the "
            f"encoders as they were; start from another row, or from zero_shot (finetunes.{name}.from)"
        )
    if settings.encoders == "text" and not spoken:
        raise ConceptError(
            f"`encoders: text` trains what says the class names, and `{start.card.row}` has embeddings of {method} in "
            f"their place; start from zero_shot, or train the image encoder (finetunes.{name}.encoders)"
        )
