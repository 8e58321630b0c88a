"""Visual Prompt Tuning: what is searched, where it starts, and what is read and run while it is."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from visuals import START, TABLES, Stopped, dies_in_step, trained

from cones.backbones.clip.clip import Clip
from cones.common.errors import BackboneError, ConceptError, ParamsError
from cones.config.params import parse_method, parse_params
from cones.features.encoded import Encoded
from cones.inference.open import in_use
from cones.interfaces.protocols import Site
from cones.search.outcome import FoundRow

QUICK = {"epochs": 3, "batch_size": 8, "lr": 0.05, "warmup_epochs": 0}
SHALLOW = {"name": "vpt_shallow", "n_tokens": 3, **QUICK}
DEEP = SHALLOW | {"name": "vpt_deep"}


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
    encoded: Encoded, search_few: Callable[..., FoundRow], settings: dict, layers: int, monkeypatch
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
    found = search_few(settings | {"epochs": 15, "batch_size": 30, "lr": 0.5})
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


def test_the_same_seed_gives_the_same_bits(search_few: Callable[..., FoundRow]) -> None:
    first, second = search_few(DEEP), search_few(DEEP)
    assert first.metrics == second.metrics
    assert first.result.curves == second.result.curves
    assert torch.equal(first.concept.tensors["visual_tokens"], second.concept.tensors["visual_tokens"])


def test_a_killed_search_goes_on_to_the_same_bits(
    search_few: Callable[..., FoundRow], tmp_path: Path, monkeypatch
) -> None:
    settings, checkpoint = DEEP | {"checkpoint_seconds": 0}, tmp_path / "state.safetensors"
    whole = search_few(settings)
    with monkeypatch.context() as patched:
        dies_in_step(6, patched)
        with pytest.raises(Stopped):
            search_few(settings, checkpoint=checkpoint)
    lines: list[dict] = []
    resumed = search_few(settings, checkpoint=checkpoint, on_epoch=lines.append)
    assert [line["epoch"] for line in lines] == [2, 3]
    assert resumed.result.curves == whole.result.curves
    assert torch.equal(resumed.concept.tensors["visual_tokens"], whole.concept.tensors["visual_tokens"])


def test_pictures_are_read_once_for_all_epochs_and_views(search_few: Callable[..., FoundRow], opened_pictures) -> None:
    search_few(DEEP | {"epochs": 6})
    assert len(opened_pictures) == 60
    assert set(opened_pictures.values()) == {1}


def test_what_does_not_fit_in_memory_is_read_anew_and_decides_nothing(
    search_few: Callable[..., FoundRow], opened_pictures, monkeypatch
) -> None:
    kept = search_few(SHALLOW)
    opened_pictures.clear()
    monkeypatch.setattr("cones.features.crops.PIXELS", 20 * 2 * 3 * 32 * 32)
    read = search_few(SHALLOW)
    assert max(opened_pictures.values()) > 3
    assert read.result.curves == kept.result.curves
    assert torch.equal(read.concept.tensors["visual_tokens"], kept.concept.tensors["visual_tokens"])


def test_validation_encodes_few_pictures_at_once(encoded: Encoded, live: Callable, monkeypatch) -> None:
    monkeypatch.setattr("cones.features.crops.AT_ONCE", 7)
    _, val = live(encoded, encoded.backbone(), lambda: torch.zeros(1, 1, 32))
    sizes = [len(batch.views) for batch in val.batches(1024)]
    assert (max(sizes), sum(sizes)) == (7, 30)


def test_pictures_to_validate_on_are_exact(encoded: Encoded, live: Callable) -> None:
    _, val = live(encoded, encoded.backbone(), lambda: None)
    live_batch, kept = next(val.batches(30)), next(encoded.val.batches(30))
    assert torch.equal(live_batch.tensors["image"], kept.tensors["image"])


def test_more_layers_than_there_are_and_no_side_of_a_patch_are_refused(
    search_few: Callable[..., FoundRow], vit_b16: Clip
) -> None:
    with pytest.raises(BackboneError, match="`vpt_deep` with depth 3: this image encoder has 2 layers; lower `depth`"):
        search_few(DEEP | {"depth": 3})
    vit_b16.sites["visual_tokens"] = Site(768, 12)
    with pytest.raises(BackboneError, match="give its `Site` a `patch_size`"):
        parse_method({"name": "vpt_shallow"}).build(vit_b16, START)


def test_joining_says_why_not(search_few: Callable[..., FoundRow], toy_clip: Path) -> None:
    seen, other = (in_use(search_few(s).concept, toy_clip, "cpu") for s in (SHALLOW, {"name": "zero_shot"}))
    for pair in ((seen, other), (other, seen)):
        with pytest.raises(ConceptError, match="`row` sees pictures by visual tokens of its own, which classes of"):
            pair[0].join(pair[1])


@pytest.mark.parametrize("name", ["vpt_shallow", "vpt_deep"])
@pytest.mark.parametrize(("concept", "kind"), [("found", "glip"), ("made", "sd")])
def test_on_a_base_model_without_its_site_it_is_refused_by_name(name: str, concept: str, kind: str) -> None:
    with pytest.raises(ParamsError, match=rf"the method `{name}` is not defined on a `{kind}` backbone; those that"):
        parse_params({**TABLES, "runs": {"a": {"concept": concept, "method": {"name": name}}}})
    parse_params({**TABLES, "runs": {"a": {"concept": "few", "method": {"name": name}}}})
