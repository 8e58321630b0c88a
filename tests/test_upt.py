"""Unified Prompt Tuning: its variants and ablations, by their numbers and by what they compute."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from visuals import START, TABLES, Stopped, dies_in_step, trained

from cones.backbones.clip.clip import Clip
from cones.common.errors import BackboneError, ConceptError, ParamsError
from cones.concept.file import Concept
from cones.config.params import parse_method, parse_params
from cones.data.prepared import Split
from cones.features.encoded import Encoded
from cones.inference.open import in_use
from cones.methods.upt.blocks import Attentive, mvlpt_block, released_block
from cones.results.evaluate import evaluate_rows
from cones.search.outcome import FoundRow

QUICK = {"epochs": 3, "batch_size": 8, "lr": 0.01, "warmup_epochs": 0, "n_ctx": 2}
UPT = {"name": "upt", **QUICK}
VARIANTS = (
    {},
    {"transform": "mlp", "depth": 1},
    {"transform": "none"},
    {"shared": False},
    {"transform": "none", "shared": False},
    {"variant": "mvlpt"},
    {"variant": "released"},
)
T, V, N, LAYERS = 512, 768, 4, 12
"""Of a CLIP ViT-B/16: the widths of its text and its image encoder, prompts, layers."""


def linear(a: int, b: int) -> int:
    return a * b + b


def attention(d: int) -> int:
    return 4 * linear(d, d)


def ffn(d: int, inside: int) -> int:
    return linear(d, inside) + linear(inside, d)


def norm(d: int) -> int:
    return 2 * d


ATTENTIVE, MLP = attention(T) + 2 * norm(T) + ffn(T, T), norm(T) + ffn(T, T)
OF_MVLPT = attention(128) + 2 * norm(128) + ffn(128, 512)


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, (N + LAYERS * N) * T + ATTENTIVE + linear(T, V)),
        ({"depth": 1}, (N + N) * T + ATTENTIVE + linear(T, V)),
        ({"transform": "mlp"}, (N + LAYERS * N) * T + MLP + linear(T, V)),
        ({"transform": "none"}, LAYERS * N * T + linear(T, V)),
        ({"transform": "none", "depth": 1}, N * T + linear(T, V)),
        ({"shared": False}, N * T + LAYERS * N * V + ATTENTIVE + linear(V, T) + linear(T, V)),
        ({"transform": "none", "shared": False}, N * T + LAYERS * N * V),
        ({"variant": "mvlpt"}, N * T + LAYERS * N * V + OF_MVLPT
         + linear(T, 128) + linear(V, 128) + linear(128, T) + linear(128, V)),
        ({"variant": "released"}, (N + N) * T + ATTENTIVE + linear(T, V)),
    ],
    ids=str,
)  # fmt: skip
def test_trained_numbers_on_vit_b16(settings: dict, count: int, vit_b16: Clip) -> None:
    assert trained({"name": "upt", **settings}, vit_b16) == count
    prompts = parse_method({"name": "upt", **settings}).build(vit_b16, START)(START.names)
    layers = 1 if settings.get("variant") == "released" else settings.get("depth", LAYERS)
    assert prompts.text_tokens.vectors.shape == (N, T)
    assert prompts.visual_tokens.shape == (layers, N, V)


def test_the_sums_are_these() -> None:
    """4 (512^2 + 512) + 2 * 1024 + 2 (512^2 + 512) = 1,577,984; with 52 prompts and the linear map 1,998,592."""
    assert ATTENTIVE == 1_577_984
    assert 52 * 512 + 1_577_984 + 512 * 768 + 768 == 1_998_592


def test_the_defaults_are_the_published_settings(vit_b16: Clip) -> None:
    wanted = {"n_ctx": 4, "optimiser": "sgd", "lr": 0.002, "weight_decay": 5e-4, "epochs": 200, "batch_size": 32}
    wanted |= {"warmup_epochs": 1, "warmup_lr": 1e-5, "patience": None, "variant": "paper"}
    assert wanted.items() <= parse_method({"name": "upt"}).model_dump().items()
    slots = {"paper": "around", "mvlpt": "around", "released": "before"}
    for variant, slot in slots.items():
        method = parse_method({"name": "upt", "variant": variant}).build(vit_b16, START)
        assert method(START.names).text_tokens.slot == slot
    front = parse_method({"name": "upt", "class_token_position": "front"}).build(vit_b16, START)
    assert front(START.names).text_tokens.slot == "after"


def test_without_a_transform_shared_prompts_are_the_same_in_both(vit_b16: Clip) -> None:
    shared = parse_method({"name": "upt", "transform": "none"}).build(vit_b16, START)
    prompts, makes = shared(START.names), shared.makes
    assert torch.equal(prompts.text_tokens.vectors, makes.prompts[:N])
    torch.testing.assert_close(prompts.visual_tokens[0], makes.to_visual(makes.prompts[:N]))
    apart = parse_method({"name": "upt", "transform": "none", "shared": False}).build(vit_b16, START)
    assert torch.equal(apart(START.names).text_tokens.vectors, apart.makes.text)
    assert torch.equal(apart(START.names).visual_tokens.flatten(0, 1), apart.makes.visual)
    assert 0.015 < apart.makes.text.std() < 0.025
    assert 0.06 < apart.makes.visual.abs().max() <= 1 / 16


def test_the_light_layer_is_the_papers_formula() -> None:
    torch.manual_seed(0)
    block, u = Attentive(16, attends=True), torch.randn(5, 16)
    q, k, v = (u @ block.attention.in_proj_weight.T + block.attention.in_proj_bias).chunk(3, -1)
    mixed = block.attention.out_proj((q @ k.T / 4).softmax(-1) @ v)
    primed = mixed + F.layer_norm(u, (16,))
    normed = F.layer_norm(primed, (16,))
    torch.testing.assert_close(block(u), block.ffn[2](block.ffn[0](normed).relu()) + normed)


@pytest.mark.parametrize(
    ("block", "mixes"),
    [
        (Attentive(16, attends=True), True),
        (Attentive(16, attends=False), False),
        (mvlpt_block(16), False),
        (released_block(16), False),
    ],
    ids=["paper", "mlp", "mvlpt", "released"],
)
def test_which_layers_mix_the_prompts(block: torch.nn.Module, mixes: bool) -> None:
    torch.manual_seed(0)
    prompts = torch.randn(5, 16)
    other = prompts.clone()
    other[4] += torch.randn(16)
    assert torch.allclose(block(prompts)[:4], block(other)[:4], atol=1e-6) != mixes
    assert not torch.allclose(block(prompts)[4], block(other)[4])


def test_the_published_codes_layers_are_theirs() -> None:
    """A sequence of one: attention is the values' own projection. The released one's prompts all have a norm of
    sqrt(d), since its norm comes last."""
    torch.manual_seed(0)
    x = torch.randn(5, 16)
    for block, first in ((mvlpt_block(16), True), (released_block(16), False)):
        layer = block.layer
        v_weight, v_bias = layer.self_attn.in_proj_weight[32:], layer.self_attn.in_proj_bias[32:]
        if first:
            h = x + layer.self_attn.out_proj(F.layer_norm(x, (16,)) @ v_weight.T + v_bias)
            inside = layer.linear1(F.layer_norm(h, (16,)))
            wanted = h + layer.linear2(inside * torch.sigmoid(1.702 * inside))
        else:
            h = F.layer_norm(x + layer.self_attn.out_proj(x @ v_weight.T + v_bias), (16,))
            wanted = F.layer_norm(h + layer.linear2(layer.linear1(h).relu()), (16,))
            torch.testing.assert_close(block(x).norm(dim=-1), torch.full((5,), 4.0), atol=1e-3, rtol=0)
        torch.testing.assert_close(block(x), wanted)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_it_is_searched_through_both_encoders(
    settings: dict, encoded: Encoded, search_few: Callable[..., FoundRow], monkeypatch
) -> None:
    opened: list[Clip] = []
    opening = Encoded.backbone
    monkeypatch.setattr(Encoded, "backbone", lambda self, *how: opened.append(opening(self, *how)) or opened[-1])
    before = opening(encoded).model.state_dict()
    found = search_few(UPT | settings | {"epochs": 12, "batch_size": 30})
    tensors, layers = found.concept.tensors, 1 if settings.get("variant") == "released" else settings.get("depth", 2)
    searched = {n: t for n, t in tensors.items() if n.startswith("searched.")}
    assert sum(t.numel() for t in searched.values()) == found.cost["trained_parameters"]
    assert tensors["visual_tokens"].shape == (layers, 2, 32)
    assert found.cost["text_encoder_calls"] == 12 + 13, "a step, and a validation"
    losses = [line["train_loss"] for line in found.result.curves[1:]]
    assert min(losses) < losses[0]
    model = opened[-1].model
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert found.concept.card.site == "text_tokens"


@pytest.mark.parametrize("settings", [{}, {"shared": False}, {"variant": "mvlpt"}, {"variant": "released"}], ids=str)
def test_the_same_seed_gives_the_same_start_whatever_was_drawn_before(vit_b16: Clip, settings: dict) -> None:
    def start(seed: int) -> dict[str, torch.Tensor]:
        torch.rand(3)
        method = parse_method({"name": "upt", **settings})
        return dict(method.build(vit_b16, replace(START, seed=seed)).named_parameters())

    state = torch.get_rng_state()
    one, same, other = start(0), start(0), start(1)
    torch.set_rng_state(state)
    assert all(torch.equal(one[n], same[n]) for n in one)
    assert any(not torch.equal(one[n], other[n]) for n in one if "linear" in n or "to_visual" in n or "into" in n)


def test_a_killed_search_goes_on_to_the_same_bits(
    search_few: Callable[..., FoundRow], tmp_path: Path, monkeypatch
) -> None:
    settings, checkpoint = UPT | {"checkpoint_seconds": 0}, tmp_path / "state.safetensors"
    whole = search_few(settings)
    with monkeypatch.context() as patched:
        dies_in_step(6, patched)
        with pytest.raises(Stopped):
            search_few(settings, checkpoint=checkpoint)
    lines: list[dict] = []
    resumed = search_few(settings, checkpoint=checkpoint, on_epoch=lines.append)
    assert [line["epoch"] for line in lines] == [2, 3]
    assert resumed.result.curves == whole.result.curves
    assert resumed.cost["text_encoder_calls"] == whole.cost["text_encoder_calls"]
    assert resumed.concept.tensors.keys() == whole.concept.tensors.keys()
    assert all(torch.equal(t, whole.concept.tensors[n]) for n, t in resumed.concept.tensors.items())


def test_its_concept_predicts_as_it_was_validated_and_says_why_it_does_not_join(
    encoded: Encoded, search_few: Callable[..., FoundRow], toy_clip: Path, tmp_path: Path
) -> None:
    found = search_few(UPT)
    path = tmp_path / "upt.safetensors"
    found.concept.save(path)
    val = encoded.folder.parent / "prepared/val"
    evaluated = evaluate_rows({"upt": path}, val, tmp_path / "cache")["upt"]
    assert evaluated.metrics == pytest.approx(found.metrics, abs=1e-4)
    used, split = in_use(Concept.load(path), toy_clip, "cpu"), Split.open(val)
    predicted = used.predict([split.picture(i) for i in range(9)])
    assert used.backbone.text_encoder_calls == 0
    scores = torch.tensor([list(p.scores.values()) for p in predicted])
    torch.testing.assert_close(scores, evaluated.predictions[0].scores[:9], atol=1e-3, rtol=0)
    with pytest.raises(ConceptError, match="`row` sees pictures by visual tokens of its own, which classes of"):
        used.join(in_use(search_few({"name": "zero_shot"}).concept, toy_clip, "cpu"))


def test_more_layers_than_there_are_are_refused(vit_b16: Clip) -> None:
    with pytest.raises(BackboneError, match="`upt` with depth 13: this image encoder has 12 layers; lower `depth`"):
        parse_method({"name": "upt", "depth": 13}).build(vit_b16, START)


@pytest.mark.parametrize(
    ("settings", "mistake"),
    [
        ({"variant": "mvlpt", "transform": "mlp"}, "variant mvlpt is as that code has it, and transform 'mlp' is for"),
        ({"variant": "released", "shared": False}, "variant released is as that code has it, and shared False is for"),
        ({"variant": "released", "depth": 12}, "variant released is as that code has it, and depth 12 is for `variant"),
        ({"variant": "mvlpt", "depth": 1}, None),
        ({"variant": "released", "depth": 1, "class_token_position": "middle"}, None),
        ({"transform": "mlp", "shared": False, "depth": 3}, None),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_mean_nothing_together_are_one_line(settings: dict, mistake: str | None) -> None:
    tables = {**TABLES, "runs": {"a": {"concept": "few", "method": {"name": "upt", **settings}}}}
    if mistake is None:
        parse_params(tables)
        return
    with pytest.raises(ParamsError, match=mistake) as caught:
        parse_params(tables)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(("concept", "kind"), [("found", "glip"), ("made", "sd")])
def test_on_a_base_model_without_its_sites_it_is_refused_by_name(concept: str, kind: str) -> None:
    with pytest.raises(ParamsError, match=rf"the method `upt` is not defined on a `{kind}` backbone; those that are"):
        parse_params({**TABLES, "runs": {"a": {"concept": concept, "method": {"name": "upt"}}}})
