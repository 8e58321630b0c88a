"""CoCoOp: each picture's own text, in a search and in a Concept that makes it again."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from visuals import START, TABLES, Stopped, dies_in_step

from cones.backbones.clip.clip import Clip
from cones.common.errors import ConceptError, ParamsError
from cones.concept.file import Concept
from cones.config.params import parse_method, parse_params
from cones.data.prepared import Split
from cones.features.encoded import Encoded
from cones.inference.open import in_use
from cones.interfaces.pictures import Features
from cones.interfaces.texts import TextTokens
from cones.methods.cocoop.module import CoCoOp
from cones.results.evaluate import evaluate_rows
from cones.search.outcome import FoundRow
from cones.tasks.texts import at_once

COCOOP = {"name": "cocoop", "epochs": 2, "batch_size": 8, "lr": 0.05, "warmup_epochs": 0}


def features_of(image: torch.Tensor) -> Features:
    return Features({"image": F.normalize(image, dim=-1)}, torch.zeros(len(image), dtype=torch.long))


def test_the_defaults_are_the_published_settings() -> None:
    wanted = {"n_ctx": 4, "ctx_init": "a photo of a", "epochs": 10, "batch_size": 1, "optimiser": "sgd", "lr": 0.002}
    wanted |= {"weight_decay": 5e-4, "warmup_epochs": 1, "warmup_lr": 1e-5, "patience": None}
    assert wanted.items() <= parse_method({"name": "cocoop"}).model_dump().items()


def test_trained_numbers_on_vit_b16(vit_b16: Clip) -> None:
    """4 x 512 for the context; 512 x 32 + 32 and 32 x 512 + 512 for the meta-net: 35,360, as its paper counts them."""
    method = parse_method({"name": "cocoop", "ctx_init": None}).build(vit_b16, START)
    assert 4 * 512 + 512 * 32 + 32 + 32 * 512 + 512 == 35_360
    assert sum(p.numel() for p in method.parameters()) == 35_360


def test_it_starts_from_its_words(clip: Clip) -> None:
    method = parse_method({"name": "cocoop", "ctx_init": "a photo of a"}).build(clip, START)
    torch.testing.assert_close(method.context.detach(), clip.word_vectors("a photo of a"))
    again, other = (
        parse_method({"name": "cocoop"}).build(clip, replace(START, seed=s)).meta_net[0].weight for s in (0, 1)
    )
    assert torch.equal(method.meta_net[0].weight, again)
    assert not torch.equal(again, other)


def test_each_picture_moves_all_tokens_by_one_vector() -> None:
    torch.manual_seed(0)
    method, features = CoCoOp(torch.randn(3, 8), 32), features_of(torch.randn(2, 32))
    tokens = method(["a"], features).text_tokens
    w1, b1, w2, b2 = (p for n, p in method.named_parameters() if n.startswith("meta_net"))
    for vectors, image in zip(tokens.vectors, features.tensors["image"]):
        shift = w2 @ (w1 @ image + b1).relu() + b2
        torch.testing.assert_close(vectors[0], method.context + shift)
    assert w1.shape == (2, 32)
    assert torch.equal(method(["a"]).text_tokens.vectors, method.context)


def test_a_text_encoder_call_is_counted_for_each_picture(clip: Clip) -> None:
    clip.embed_text(["star", "heart"], TextTokens(torch.zeros(5, 1, 2, 32)))
    assert clip.text_encoder_calls == 5


def test_fewer_pictures_go_at_once_where_each_brings_sentences() -> None:
    assert at_once(1024, 100, False) == 1024
    assert at_once(1024, 100, True) == 10
    assert at_once(4, 100, True) == 4
    assert at_once(1024, 5000, True) == 1


def test_it_is_searched_on_kept_features(encoded: Encoded, search_few: Callable[..., FoundRow], monkeypatch) -> None:
    monkeypatch.setattr("cones.tasks.texts.SENTENCES", 70)
    asked: list[int] = []
    opened: list[Clip] = []
    opening, embedding = Encoded.backbone, Clip.embed_text

    def embed_text(clip: Clip, names, tokens=None, **more):
        asked.append(len(tokens.vectors) if tokens.vectors.ndim == 4 else 1)
        return embedding(clip, names, tokens, **more)

    monkeypatch.setattr(Clip, "embed_text", embed_text)
    monkeypatch.setattr(Encoded, "backbone", lambda self, *how: opened.append(opening(self, *how)) or opened[-1])
    before = opening(encoded).model.state_dict()
    found = search_few(COCOOP | {"epochs": 12, "batch_size": 5})
    searched = {n: t for n, t in found.concept.tensors.items() if n.startswith("searched.")}
    meta_net = {f"searched.meta_net.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")}
    assert set(searched) == {"searched.context"} | meta_net
    assert found.cost["trained_parameters"] == 4 * 32 + 24 + 1 + 32 + 32 == sum(t.numel() for t in searched.values())
    assert found.cost["text_encoder_calls"] == 12 * 30 + 13 * 30, "for each picture of a step, and of a validation"
    assert max(asked) == 7, "70 sentences of 10 classes at once"
    assert found.concept.card.needs_text_encoder
    losses = [line["train_loss"] for line in found.result.curves[1:]]
    assert min(losses) < losses[0]
    model = opened[-1].model
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_killed_search_goes_on_to_the_same_bits(
    search_few: Callable[..., FoundRow], tmp_path: Path, monkeypatch
) -> None:
    settings, checkpoint = COCOOP | {"checkpoint_seconds": 0}, tmp_path / "state.safetensors"
    whole = search_few(settings)
    with monkeypatch.context() as patched:
        dies_in_step(6, patched)
        with pytest.raises(Stopped):
            search_few(settings, checkpoint=checkpoint)
    resumed = search_few(settings, checkpoint=checkpoint)
    assert resumed.result.curves == whole.result.curves
    assert resumed.cost["text_encoder_calls"] == whole.cost["text_encoder_calls"]
    assert all(torch.equal(t, whole.concept.tensors[n]) for n, t in resumed.concept.tensors.items())


@pytest.fixture
def saved(search_few: Callable[..., FoundRow], tmp_path: Path) -> tuple[FoundRow, Path]:
    found = search_few(COCOOP)
    found.concept.save(tmp_path / "cocoop.safetensors")
    return found, tmp_path / "cocoop.safetensors"


def test_its_concept_makes_each_pictures_text_again(
    encoded: Encoded, saved: tuple[FoundRow, Path], toy_clip: Path, tmp_path: Path, monkeypatch
) -> None:
    found, path = saved
    val = encoded.folder.parent / "prepared/val"
    evaluated = evaluate_rows({"cocoop": path}, val, tmp_path / "cache")["cocoop"]
    assert evaluated.metrics == pytest.approx(found.metrics, abs=1e-4)
    used, split = in_use(Concept.load(path), toy_clip, "cpu"), Split.open(val)
    pictures = [split.picture(i) for i in range(9)]
    predicted = used.predict(pictures)
    assert used.backbone.text_encoder_calls == 9
    scores = torch.tensor([list(p.scores.values()) for p in predicted])
    torch.testing.assert_close(scores, evaluated.predictions[0].scores[:9], atol=1e-3, rtol=0)
    monkeypatch.setattr("cones.tasks.texts.SENTENCES", 20)
    few = torch.tensor([list(p.scores.values()) for p in used.predict(pictures)])
    torch.testing.assert_close(few, scores, atol=1e-5, rtol=1e-4)
    plain = used.card.model_copy(update={"needs_text_encoder": False})
    alone = in_use(Concept(plain, used.tensors), toy_clip, "cpu").predict(pictures)
    assert [p.scores for p in alone] != [p.scores for p in predicted], "the context alone says something else"


def test_joining_says_why_not(
    search_few: Callable[..., FoundRow], saved: tuple[FoundRow, Path], toy_clip: Path
) -> None:
    own, other = (in_use(c, toy_clip, "cpu") for c in (saved[0].concept, search_few({"name": "zero_shot"}).concept))
    for pair in ((own, other), (other, own)):
        with pytest.raises(ConceptError, match="`row` gives each picture a text of its own by context tokens of its"):
            pair[0].join(pair[1])


@pytest.mark.parametrize(
    ("method", "change", "why"),
    [
        ("coop", {}, "by the method 'coop', which this version cannot make again"),
        ("../cocoop", {}, "by the method '../cocoop', which this version cannot make again"),
        (["cocoop"], {}, "which this version cannot make again"),
        ("cocoop", {"searched.context": torch.zeros(4, 31)}, r"`context` is \(4, 31\) and must be \(4, 32\)"),
        ("cocoop", {"searched.meta_net.0.weight": torch.zeros(1, 24, 1)}, r"`meta_net.0.weight` is \(1, 24, 1\) and"),
        ("cocoop", {"searched.meta_net.2.bias": None}, r"`meta_net.2.bias` is missing and must be \(32,\)"),
        ("cocoop", {"searched.more": torch.zeros(1)}, "Unexpected key"),
    ],
)
def test_a_concept_that_is_not_sound_is_refused_in_one_line(
    saved: tuple[FoundRow, Path], toy_clip: Path, method: object, change: dict, why: str
) -> None:
    concept = saved[0].concept
    tensors = {n: t for n, t in (concept.tensors | change).items() if t is not None}
    card = concept.card.model_copy(update={"method": {"name": method}})
    with pytest.raises(ConceptError, match=why) as caught:
        in_use(Concept(card, tensors), toy_clip, "cpu").predict([Image.new("RGB", (32, 32))])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("concept", "kind"), [("found", "glip"), ("made", "sd")])
def test_on_a_base_model_of_another_family_it_is_refused_by_name(concept: str, kind: str) -> None:
    with pytest.raises(
        ParamsError, match=rf"the method `cocoop` is not defined on a `{kind}` backbone; those that are"
    ):
        parse_params({**TABLES, "runs": {"a": {"concept": concept, "method": {"name": "cocoop"}}}})
