"""One row of the table: build its method, search, and make the Concept with its metrics and its cost."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from torch import Tensor

from cones.common.errors import DataError, SearchError
from cones.common.layout import CACHE
from cones.common.messages import nearest
from cones.concept.card import ConceptCard, mistake_of
from cones.concept.file import Concept
from cones.config.tables import RunConfig
from cones.features.encoded import Encoded
from cones.interfaces.protocols import Backbone, text_of
from cones.interfaces.texts import TextEmbeds
from cones.methods.build import ImageStart, Start, build
from cones.methods.cones.module import class_means
from cones.methods.coop import CoOp
from cones.methods.prompt_tuning import PromptTuning
from cones.methods.searched import Denoised, Searched
from cones.methods.textual_inversion.settings import TextualInversion
from cones.methods.warmstart import pictured_rows
from cones.methods.zero_shot import ZeroShot
from cones.search.loop import search
from cones.search.outcome import FoundRow, SearchResult, cost_of, versions
from cones.tasks.classification.measure import mean_loss
from cones.tasks.generation.row import Watch, sentence_tensors, sentences_of, set_up, watch_nothing
from cones.tasks.ranking import headline
from cones.tasks.table import TASKS
from cones.tasks.task import predict_all

if TYPE_CHECKING:
    from accelerate import Accelerator


def search_row(
    name: str,
    run: RunConfig,
    encoded: Encoded,
    accelerator: "Accelerator",
    checkpoint: Path | None = None,
    on_epoch: Callable[[dict[str, float]], None] = lambda line: None,
    samples: Path | None = None,
) -> FoundRow:
    """Search one row on an encoded concept; validation chooses, and the test split is not even known here.

    In generation, pictures that the row asks for on the way go to the folder `samples`, named by their step.
    """
    about, device = encoded.about, accelerator.device
    names, seed, task = spoken_names(run, about), about["seed"], TASKS[about["task"]]
    backbone: Any = encoded.backbone(device)
    method = build(run.method, backbone, _start(encoded, backbone, names)).to(device)
    trained = sum(p.numel() for p in method.parameters())
    site = "text_tokens" if isinstance(run.method, CoOp | PromptTuning | TextualInversion) else "text_embeds"
    card = make_card(name, run, encoded, names, site, trained)
    result = SearchResult()
    watch: Callable[[int], None] = watch_nothing
    if about["task"] == "generation" and isinstance(run.method, Denoised):
        set_up(run.method, backbone)
        if run.method.sample_every and samples is not None:
            steps_an_epoch = math.ceil(len(encoded.train) / run.method.batch_size)
            every = run.method.sample_every
            watch = Watch(
                partial(sentences_of, method, backbone, names), backbone, encoded, samples, every, steps_an_epoch
            )
    if isinstance(run.method, Searched):
        result = search(
            method, backbone, names, encoded.train, encoded.val, run.method, seed, accelerator, checkpoint,
            on_epoch, about["task"], watch,
        )  # fmt: skip
    calls = backbone.text_encoder_calls
    with torch.no_grad():
        text = text_of(method, backbone, names)
    found = predict_all(backbone, encoded.val.batches(task.batch), text, task, device)
    metrics = task.full(found, encoded.val, names).metrics
    cost = cost_of(encoded, result, trained, calls)
    tensors = {"text_embeds": text.embeds[0].detach().clone(), "owner": text.owner}
    if about["task"] == "generation":
        tensors = sentence_tensors(text, encoded)
    if text.pooled is not None:
        tensors["pooled"] = text.pooled.detach().clone()
    if site == "text_tokens":
        tensors |= {f"searched.{n}": p.detach() for n, p in method.named_parameters()}
    finite = {k: v for k, v in metrics.items() if math.isfinite(v)}
    if headline(about["task"]) not in finite:
        raise SearchError(f"`{name}` has no finite {headline(about['task'])} on validation: {metrics}")
    card = card.model_copy(update={"val": finite})
    return FoundRow(Concept(card, tensors), result, metrics, cost)


def make_card(
    name: str, run: RunConfig, encoded: Encoded, names: Sequence[str], site: str, trained: int
) -> ConceptCard:
    """A row's card, but for its validation; `SearchError` for what no card can say, before anything is searched."""
    about = encoded.about
    kept = ("concept", "task", "classes", "templates", "preprocessing", "shots", "seed", "split_hash")
    special = ("score_threshold", "canvas", "guidance", "sampling_steps")
    facts = {key: about[key] for key in kept} | {key: about.get(key) for key in special}
    facts |= {"row": name, "method": run.method.model_dump(), "base": encoded.base, "names": names, "site": site}
    try:
        return ConceptCard(**facts, trained_parameters=trained, val={}, versions=versions())
    except ValidationError as error:
        raise SearchError(
            f"no Concept can be made of `{name}`: {mistake_of(error)}; correct params.yaml or the data"
        ) from None


def spoken_names(run: RunConfig, about: Mapping[str, Any]) -> list[str]:
    """What each class is called in a row: as in the concept, or as a zero-shot row says it."""
    own = run.method.names if isinstance(run.method, ZeroShot) else {}
    for given in own:
        if given not in about["classes"]:
            raise DataError(f"`names` speaks of the class `{given}`, which is none{nearest(given, about['classes'])}")
    return [own.get(label, name) for label, name in zip(about["classes"], about["names"])]


def _start(encoded: Encoded, backbone: Backbone, names: Sequence[str]) -> Start:
    about, train, val = encoded.about, encoded.train, encoded.val
    images = None
    if encoded.base.kind == "clip":
        plain = torch.cat([b.tensors["image"] for b in train.batches(1024)])
        held = next(val.batches(len(val)))

        def loss_of(embeds: Tensor) -> float:
            return mean_loss(backbone.predict(held, TextEmbeds.one_per_class(embeds)).scores, val.labels)

        images = ImageStart(class_means(plain, train.labels, len(about["classes"])), loss_of)
    pictured = None
    if encoded.base.kind == "sd":
        hashes = (encoded.base.sha256, about["clip"]["sha256"])

        def pictured(rows: str | int) -> Tensor:
            assert encoded.seen is not None, "the pictures' feature is encoded with the concept"
            clip, template = encoded.clip(), about["templates"][0]
            return pictured_rows(backbone, clip, encoded.seen, template, rows, hashes, CACHE)

    return Start(names, encoded.text, about["seed"], about["templates"], images, pictured)
