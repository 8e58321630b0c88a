"""One row of the table: build its method, search, and make the Concept with its metrics and its cost."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from cones.common.errors import DataError, SearchError
from cones.common.layout import CACHE
from cones.common.messages import nearest
from cones.concept.card import ConceptCard, mistake_of
from cones.concept.file import Concept
from cones.features.encoded import Encoded
from cones.interfaces.pictures import Pictures, mean_loss
from cones.interfaces.processes import gathered, share_of
from cones.interfaces.protocols import Backbone, Paints, prompts_of, refuse_missing_sites, text_of, told_by
from cones.interfaces.texts import TextEmbeds
from cones.methods.fitted import Fits
from cones.methods.restored import can_restore
from cones.methods.searched import Row, Searched
from cones.methods.start import ImageStart, Start, class_means
from cones.methods.warmstart import pictured_rows
from cones.search.epochs import Epochs, search
from cones.search.outcome import SearchedRow, SearchResult, cost_of, versions
from cones.search.rates import choose_rate
from cones.tasks.parts import part_of, task_of
from cones.tasks.ranking import headline
from cones.tasks.task import predict_all
from cones.tasks.texts import at_once

if TYPE_CHECKING:
    from accelerate import Accelerator

Live = Callable[[Encoded, Backbone, Callable[[], Tensor | None]], tuple[Pictures, Pictures]]
"""Training and validation pictures that are encoded anew, given what makes the visual tokens."""


def search_row(
    name: str,
    run: Row,
    encoded: Encoded,
    accelerator: "Accelerator",
    checkpoint: Path | None = None,
    on_epoch: Callable[[dict[str, float]], None] = lambda line: None,
    samples: Path | None = None,
    live: Live | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> SearchedRow:
    """Search one row on an encoded concept; validation chooses, and the test split is not even known here. Without
    validation pictures the last step is kept, and there are no metrics.

    In generation, pictures that the row asks for on the way go to the folder `samples`, named by their step. `live`
    gives the pictures of a method that enters the image encoder. With `lr: auto` the card's method has the `chosen_lr`,
    and `note` is told how that goes. Raises `BackboneError` for a method whose prompts the base model has no site for,
    and `SearchError` for one that no Concept can hold, before any weights are loaded. The Concept of a method that
    reads pictures holds the text of its context alone as `text_embeds`, which no prediction uses.
    """
    about, device = encoded.about, accelerator.device
    names, seed, task = spoken_names(run, about), about["seed"], task_of(about["task"])
    parts = part_of(about["task"], "row")
    backbone = encoded.backbone(device)
    refuse_missing_sites(run.method.sites(), backbone, f"the method `{run.method.name}`")
    own_texts = run.method.reads_pictures
    if own_texts and not can_restore(run.method.name):
        raise SearchError(
            f"`{run.method.name}` gives each picture a text of its own, which no Concept can hold: its module has no "
            "`restored`, as cones/methods/restored.py asks for"
        )
    method = run.method.build(backbone, _start(encoded, backbone, names)).to(device)
    trained = sum(p.numel() for p in method.parameters())
    card = make_card(name, run, encoded, names, run.method.site, trained)
    result, (train, val) = SearchResult(), _pictures(run, encoded, method, backbone, names, live)
    rates: list[dict[str, float]] = []
    if isinstance(run.method, Searched):
        settings, seconds = run.method, 0.0
        if settings.lr == "auto":
            work = Epochs(method, backbone, names, train, val, settings, seed, accelerator, about["task"])
            rates, seconds = choose_rate(work, about["task"], checkpoint, note)
            settings = settings.model_copy(update={"lr": rates[0]["lr"]})
            card = card.model_copy(update={"method": {**card.method, "chosen_lr": settings.lr}})
        watch = None if samples is None else parts.watch_of(settings, method, backbone, encoded, samples)
        result = search(
            method, backbone, names, train, val, settings, seed, accelerator, checkpoint,
            on_epoch, about["task"], watch or (lambda epoch: None),
        )  # fmt: skip
        result = replace(result, seconds=result.seconds + seconds)
    if isinstance(method, Fits):
        began = time.perf_counter()
        steps = method.fit(train, val)
        result = replace(result, steps=result.steps + steps, seconds=result.seconds + time.perf_counter() - began)
    calls = backbone.text_encoder_calls
    with torch.no_grad():
        prompts = prompts_of(method, backbone, names)
        text = told_by(prompts, backbone, names)
    metrics: dict[str, float] = {}
    if len(val):
        texts = partial(text_of, method, backbone, names) if own_texts else text
        batches = val.batches(at_once(task.batch, len(names), own_texts), share_of(accelerator))
        predictions = gathered(accelerator, predict_all(backbone, batches, texts, task, device, own_texts))
        metrics = task.full(predictions, encoded.val, names).metrics
    cost = cost_of(encoded, result, trained, calls)
    tensors = parts.concept_tensors(text, encoded)
    if prompts.visual_tokens is not None:
        tensors["visual_tokens"] = prompts.visual_tokens.detach().clone()
    if text.pooled is not None:
        tensors["pooled"] = text.pooled.detach().clone()
    if run.method.site == "text_tokens":
        tensors |= {f"searched.{n}": p.detach() for n, p in method.named_parameters()}
    finite = {k: v for k, v in metrics.items() if math.isfinite(v)}
    if len(val) and headline(about["task"]) not in finite:
        raise SearchError(f"`{name}` has no finite {headline(about['task'])} on validation: {metrics}")
    card = card.model_copy(update={"val": finite})
    return SearchedRow(Concept(card, tensors), result, metrics, cost, method, rates=rates)


def _pictures(
    run: Row, encoded: Encoded, method: nn.Module, backbone: Backbone, names: Sequence[str], live: Live | None
) -> tuple[Pictures, Pictures]:
    """The training and the validation pictures: kept features, or encoded anew with the method's visual tokens."""

    def visual_tokens() -> Tensor | None:
        return prompts_of(method, backbone, names).visual_tokens

    enters, name = run.method.enters_image_encoder, run.method.name
    with torch.no_grad():
        if (visual_tokens() is not None) != enters:
            gives = "no visual tokens" if enters else "visual tokens"
            raise SearchError(f"the method `{name}` gives {gives}, and its `enters_image_encoder` says otherwise")
    if not enters:
        return encoded.train, encoded.val
    if live is None:
        raise SearchError(f"`{name}` enters the image encoder, so that it needs the pictures themselves")
    return live(encoded, backbone, visual_tokens)


def make_card(name: str, run: Row, encoded: Encoded, names: Sequence[str], site: str, trained: int) -> ConceptCard:
    """A row's card, but for its validation; `SearchError` for what no card can say, before anything is searched."""
    about = encoded.about
    kept = ("concept", "task", "classes", "templates", "preprocessing", "shots", "seed", "split_hash")
    special = ("score_threshold", "canvas", "guidance", "sampling_steps", "reading")
    facts = {key: about[key] for key in kept} | {key: about.get(key) for key in special}
    facts |= {"row": name, "method": run.method.model_dump(), "base": encoded.base, "names": names, "site": site}
    facts |= {"needs_text_encoder": run.method.reads_pictures, "processes": run.processes}
    try:
        return ConceptCard(**facts, trained_parameters=trained, val={}, versions=versions())
    except ValidationError as error:
        raise SearchError(
            f"no Concept can be made of `{name}`: {mistake_of(error)}; correct params.yaml or the data"
        ) from None


def spoken_names(run: Row, about: Mapping[str, Any]) -> list[str]:
    """What each class is called in a row: as in the concept, or as a zero-shot row says it."""
    own = run.method.own_names
    for given in own:
        if given not in about["classes"]:
            raise DataError(f"`names` speaks of the class `{given}`, which is none{nearest(given, about['classes'])}")
    return [own.get(label, name) for label, name in zip(about["classes"], about["names"])]


def _start(encoded: Encoded, backbone: Backbone, names: Sequence[str]) -> Start:
    about = encoded.about
    images = partial(_images, encoded, backbone) if "image" in encoded.train.arrays else None
    pictured = None if encoded.seen is None else partial(_pictured, encoded, backbone)
    return Start(names, encoded.text, about["seed"], about["templates"], images, pictured)


def _images(encoded: Encoded, backbone: Backbone) -> ImageStart:
    train, val = encoded.train, encoded.val
    plain = torch.cat([b.tensors["image"] for b in train.batches(1024)])

    def loss_of(embeds: Tensor) -> float:
        whole = next(val.batches(len(val)))
        return mean_loss(backbone.predict(whole, TextEmbeds.one_per_class(embeds)).scores, val.labels)

    return ImageStart(class_means(plain, train.labels, len(encoded.about["classes"])), loss_of, train)


def _pictured(encoded: Encoded, backbone: Backbone, rows: str | int) -> Tensor:
    assert encoded.seen is not None, "the pictures' feature is encoded with the concept"
    about = encoded.about
    hashes = (encoded.base.sha256, about["clip"]["sha256"])
    paints = cast(Paints, backbone)
    return pictured_rows(paints, encoded.clip(), encoded.seen, about["templates"][0], rows, hashes, CACHE)
