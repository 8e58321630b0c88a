"""Visual Prompt Tuning: what is searched, where it starts, and what is read and run while it is."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from cones.backbones.clip.clip import Clip
from cones.common.errors import BackboneError, ConceptError, ParamsError
from cones.common.files import write_json
from cones.config.params import parse_method, parse_params
from cones.config.tables import RunConfig
from cones.features.encoded import Encoded
from cones.inference.open import in_use
from cones.interfaces.protocols import Site
from cones.interfaces.texts import TextEmbeds
from cones.methods.start import Start
from cones.search.outcome import FoundRow
from cones.search.row import search_row
from cones.tasks.classification.live import live_pictures
from cones.tasks.classification.settings import ClassificationConcept

CONCEPT = ClassificationConcept(task="classification", backbone="toy", data="glyphs", shots=3, views=2)
QUICK = {"epochs": 3, "batch_size": 8, "lr": 0.05, "warmup_epochs": 0}
SHALLOW = {"name": "vpt_shallow", "n_tokens": 3, **QUICK}
DEEP = SHALLOW | {"name": "vpt_deep"}
START = Start(["a", "b"], TextEmbeds.one_per_class(torch.zeros(2, 512)), seed=0)


@pytest.fixture
def live(encoded: Encoded) -> Callable:
    return partial(live_pictures, CONCEPT, encoded.folder.parent / "prepared")


@pytest.fixture
def row(encoded: Encoded, accelerator, live: Callable) -> Callable[..., FoundRow]:
    """Search a row of some settings."""

    def searched(settings: dict, **more) -> FoundRow:
        run = RunConfig(concept="few", method=parse_method(settings))
        return search_row("row", run, encoded, accelerator, live=live, **more)

    return searched


@pytest.fixture
def vit_b16(tmp_path: Path) -> Clip:
    """A CLIP ViT-B/16 without weights: its configuration says what there is to search on."""
    write_json(tmp_path / "config.json", {"model_type": "clip", "vision_config": {"patch_size": 16}})
    return Clip(tmp_path, logit_scale=100.0)


def trained(settings: dict, vit_b16: Clip) -> int:
    """How many numbers train on it."""
    return sum(p.numel() for p in parse_method(settings).build(vit_b16, START).parameters())


def test_the_defaults_are_the_published_settings() -> None:
    for name in ("vpt_shallow", "vpt_deep"):
        found = parse_method({"name": name}).model_dump()
        wanted = {"n_tokens": 16, "optimiser": "sgd", "lr": 0.002, "weight_decay": 5e-4, "momentum": 0.9, "epochs": 200}
        wanted |= {"batch_size": 32, "warmup_epochs": 1, "warmup_lr": 1e-5, "patience": None}
        assert wanted.items() <= found.items()


def test_trained_numbers_on_vit_b16(vit_b16: Clip) -> None:
    """16 prompts of 768 numbers, for one layer or for each of 12."""
    assert trained({"name": "vpt_shallow"}, vit_b16) == 16 * 768 == 12_288
    assert trained({"name": "vpt_deep"}, vit_b16) == 12 * 16 * 768 == 147_456
    assert trained({"name": "vpt_deep", "depth": 9}, vit_b16) == 9 * 16 * 768


def test_prompts_start_within_the_bound_of_a_patch(vit_b16: Clip) -> None:
    """sqrt(6 / (3 * 16^2 + 768)) = sqrt(1 / 256) = 1 / 16."""
    tokens = parse_method({"name": "vpt_deep"}).build(vit_b16, START).tokens.detach()
    assert tokens.shape == (12, 16, 768)
    assert 0.0624 < tokens.abs().max() <= 1 / 16
    assert tokens.mean().abs() < 1e-3
    assert tokens.std() == pytest.approx(1 / 16 / math.sqrt(3), rel=0.01)
    again, other = (
        parse_method({"name": "vpt_deep"}).build(vit_b16, replace(START, seed=s)).tokens.detach() for s in (0, 1)
    )
    assert torch.equal(tokens, again)
    assert not torch.equal(tokens, other)


def test_clip_knows_the_side_of_its_patches(clip: Clip) -> None:
    assert clip.sites["visual_tokens"] == Site(32, 2, patch_size=8)


@pytest.mark.parametrize(("settings", "layers"), [(SHALLOW, 1), (DEEP, 2), (DEEP | {"depth": 1}, 1)])
def test_exactly_the_prompts_are_searched(
    encoded: Encoded, row: Callable[..., FoundRow], settings: dict, layers: int, monkeypatch
) -> None:
    from transformers.models.clip.modeling_clip import CLIPTextEmbeddings

    def refuse(*args, **kwargs):
        raise AssertionError("the text encoder ran")

    monkeypatch.setattr(CLIPTextEmbeddings, "forward", refuse)
    monkeypatch.setattr(Clip, "embed_text", refuse)
    opened: list[Clip] = []
    opening = Encoded.backbone
    monkeypatch.setattr(Encoded, "backbone", lambda self, *how: opened.append(opening(self, *how)) or opened[-1])
    before = opening(encoded).model.state_dict()
    found = row(settings | {"epochs": 15, "batch_size": 30, "lr": 0.5})
    tensors = found.concept.tensors
    assert set(tensors) == {"text_embeds", "owner", "visual_tokens"}
    assert tensors["visual_tokens"].shape == (layers, 3, 32)
    assert torch.equal(tensors["text_embeds"], encoded.text.embeds[0])
    assert found.cost["trained_parameters"] == layers * 3 * 32
    assert found.cost["text_encoder_calls"] == 0
    assert found.concept.card.site == "visual_tokens"
    losses = [line["train_loss"] for line in found.result.curves[1:]]
    assert losses[-1] < losses[0]
    model = opened[-1].model
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_the_same_seed_gives_the_same_bits(row: Callable[..., FoundRow]) -> None:
    first, second = row(DEEP), row(DEEP)
    assert first.metrics == second.metrics
    assert first.result.curves == second.result.curves
    assert torch.equal(first.concept.tensors["visual_tokens"], second.concept.tensors["visual_tokens"])


class Stopped(Exception):
    """Stands for a kill."""


def dies_in_step(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search of a CLIP ends at this step, which is counted from 1."""
    objective, steps = Clip.objective, Counter[str]()

    def dying(clip: Clip, settings=None):
        loss = objective(clip, settings)

        def counted(*given):
            steps["done"] += 1
            if steps["done"] == step:
                raise Stopped
            return loss(*given)

        return counted

    monkeypatch.setattr(Clip, "objective", dying)


def test_a_killed_search_goes_on_to_the_same_bits(row: Callable[..., FoundRow], tmp_path: Path, monkeypatch) -> None:
    settings, checkpoint = DEEP | {"checkpoint_seconds": 0}, tmp_path / "state.safetensors"
    whole = row(settings)
    with monkeypatch.context() as patched:
        dies_in_step(6, patched)
        with pytest.raises(Stopped):
            row(settings, checkpoint=checkpoint)
    lines: list[dict] = []
    resumed = row(settings, checkpoint=checkpoint, on_epoch=lines.append)
    assert [line["epoch"] for line in lines] == [2, 3]
    assert resumed.result.curves == whole.result.curves
    assert torch.equal(resumed.concept.tensors["visual_tokens"], whole.concept.tensors["visual_tokens"])


def test_pictures_are_read_once_for_all_epochs_and_views(row: Callable[..., FoundRow], opened_pictures) -> None:
    row(DEEP | {"epochs": 6})
    assert len(opened_pictures) == 60
    assert set(opened_pictures.values()) == {1}


def test_what_does_not_fit_in_memory_is_read_anew_and_decides_nothing(
    row: Callable[..., FoundRow], opened_pictures, monkeypatch
) -> None:
    kept = row(SHALLOW)
    opened_pictures.clear()
    monkeypatch.setattr("cones.features.crops.PIXELS", 20 * 2 * 3 * 32 * 32)
    read = row(SHALLOW)
    assert max(opened_pictures.values()) > 3
    assert read.result.curves == kept.result.curves
    assert torch.equal(read.concept.tensors["visual_tokens"], kept.concept.tensors["visual_tokens"])


def test_validation_encodes_few_pictures_at_once(encoded: Encoded, live: Callable, monkeypatch) -> None:
    monkeypatch.setattr("cones.features.crops.AT_ONCE", 7)
    _, val = live(encoded, encoded.backbone(), lambda: torch.zeros(1, 1, 32))
    sizes = [len(batch.views) for batch in val.batches(1024)]
    assert (max(sizes), sum(sizes)) == (7, 30)


def test_more_layers_than_there_are_and_no_side_of_a_patch_are_refused(
    row: Callable[..., FoundRow], vit_b16: Clip
) -> None:
    with pytest.raises(BackboneError, match="`vpt_deep` with depth 3: this image encoder has 2 layers; lower `depth`"):
        row(DEEP | {"depth": 3})
    vit_b16.sites["visual_tokens"] = Site(768, 12)
    with pytest.raises(BackboneError, match="give its `Site` a `patch_size`"):
        parse_method({"name": "vpt_shallow"}).build(vit_b16, START)


def test_joining_says_why_not(row: Callable[..., FoundRow], toy_clip: Path) -> None:
    seen, other = (in_use(row(s).concept, toy_clip, "cpu") for s in (SHALLOW, {"name": "zero_shot"}))
    for pair in ((seen, other), (other, seen)):
        with pytest.raises(ConceptError, match="`row` sees pictures by visual tokens of its own, which classes of"):
            pair[0].join(pair[1])


TABLES = {
    "backbones": {
        "toy": {"kind": "clip", "source": "c"},
        "glip": {"kind": "glip", "source": "g"},
        "sd": {"kind": "sd", "source": "s", "clip": {"source": "c"}, "judge": {"source": "j"}},
    },
    "data": {
        "glyphs": {"kind": "world", "vocabulary": "novel"},
        "scenes": {"kind": "scenes", "vocabulary": "base"},
        "cat": {"kind": "subject", "source": "x"},
    },
    "concepts": {
        "few": {"task": "classification", "backbone": "toy", "data": "glyphs", "shots": 2},
        "found": {"task": "detection", "backbone": "glip", "data": "scenes", "shots": 2},
        "made": {"task": "generation", "backbone": "sd", "data": "cat", "word": "cat"},
    },
}
"""A concept of each family, `few` of CLIP."""


@pytest.mark.parametrize("name", ["vpt_shallow", "vpt_deep"])
@pytest.mark.parametrize(("concept", "kind"), [("found", "glip"), ("made", "sd")])
def test_on_a_base_model_without_its_site_it_is_refused_by_name(name: str, concept: str, kind: str) -> None:
    with pytest.raises(ParamsError, match=rf"the method `{name}` is not defined on a `{kind}` backbone; those that"):
        parse_params({**TABLES, "runs": {"a": {"concept": concept, "method": {"name": name}}}})
    parse_params({**TABLES, "runs": {"a": {"concept": "few", "method": {"name": name}}}})
