"""One row of the table: build its method, search, and make the Concept with its metrics and its cost."""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cones.card import ConceptCard
from cones.concept import Concept
from cones.config import RunConfig, Searched
from cones.encoded import Encoded
from cones.files import read_json
from cones.methods import Start, build, class_means
from cones.search import SearchResult, scores_of, search, text_of
from cones.tasks import classification_metrics, mean_loss
from cones.types import Backbone, TextEmbeds

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class FoundRow:
    """What searching a row gives: the Concept, its curves, validation metrics, and what it cost."""

    concept: Concept
    result: SearchResult
    metrics: dict[str, float]
    cost: dict[str, float]


def search_row(
    name: str,
    run: RunConfig,
    encoded: Encoded,
    accelerator: "Accelerator",
    checkpoint: Path | None = None,
    on_epoch: Callable[[dict[str, float]], None] = lambda line: None,
) -> FoundRow:
    """Search one row on an encoded concept; validation chooses, and the test split is not even known here."""
    about, device = encoded.about, accelerator.device
    names, seed = about["names"], about["seed"]
    backbone = encoded.backbone(device)
    method = build(run.method, backbone, _start(encoded, backbone)).to(device)
    trained = sum(p.numel() for p in method.parameters())
    result = SearchResult()
    if isinstance(run.method, Searched):
        result = search(
            method, backbone, names, encoded.train, encoded.val, run.method, seed, accelerator, checkpoint,
            on_epoch=on_epoch,
        )  # fmt: skip
    calls = backbone.text_encoder_calls
    metrics = classification_metrics(scores_of(method, backbone, names, encoded.val, device), encoded.val.labels)
    features = read_json(encoded.folder / "cost.json")["feature_seconds"]
    cost = {
        "search_seconds": round(features + result.seconds, 3),
        "feature_seconds": features,
        "optimise_seconds": round(result.seconds, 3),
        "steps": result.steps,
        "steps_to_best": result.steps_to_best,
        "trained_parameters": trained,
        "text_encoder_calls": calls,
        "peak_memory_mb": peak_memory_mb(),
    }
    with torch.no_grad():
        text = text_of(method, backbone, names)
    searched = {f"searched.{n}": p.detach() for n, p in method.named_parameters()}
    tensors = {"text_embeds": text.embeds[0].detach().clone(), "owner": text.owner, **searched}
    card = ConceptCard(
        concept=about["concept"], row=name, task=about["task"], method=run.method.model_dump(),
        site="text_tokens" if run.method.name == "coop" else "text_embeds", classes=about["classes"], names=names,
        templates=about["templates"], base=encoded.base, preprocessing=about["preprocessing"], shots=about["shots"],
        seed=seed, split_hash=about["split_hash"], trained_parameters=trained, val=metrics, versions=versions(),
    )  # fmt: skip
    return FoundRow(Concept(card, tensors), result, metrics, cost)


def _start(encoded: Encoded, backbone: Backbone) -> Start:
    train, val = encoded.train, encoded.val
    plain = torch.cat([b.tensors["image"] for b in train.batches(1024)])
    held = next(val.batches(len(val)))

    def loss_of(embeds: Tensor) -> float:
        return mean_loss(backbone.predict(held, TextEmbeds.one_per_class(embeds)).scores, val.labels)

    images = class_means(plain, train.labels, len(encoded.about["classes"]))
    return Start(encoded.about["names"], encoded.text, images, loss_of, encoded.about["seed"])


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    return {"python": platform.python_version(), **{p: version(p) for p in ("cones", "torch", "transformers")}}


def peak_memory_mb() -> float:
    """The most memory this process has held, in MB: of the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
