"""Searching what a Stable Diffusion is told: ConES in its rows, textual inversion, noise, stop and resume."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from generations import CONES, INVERSION, NOISE, Studio
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cones.backbones.sd.sd import Diffusion
from cones.config.params import parse_method
from cones.features.encoded import Encoded
from cones.finetuning.diffusion import _drawn
from cones.interfaces.pictures import Features
from cones.interfaces.randomness import generator_for
from cones.interfaces.texts import Prompts, TextEmbeds
from cones.methods.cones.module import Cones
from cones.methods.cones.sentences import SentenceCones, places_of
from cones.methods.fixed import FixedSentences, FixedText
from cones.methods.language_prompt.module import LanguagePrompt
from cones.methods.searched import Searched
from cones.methods.warmstart import fit_map, pictured_rows, random_phrases
from cones.search.checkpoint import Progress
from cones.search.epochs import Epochs, search
from cones.search.row import _start
from cones.search.schedule import learning_rate
from cones.tasks.encode import draw, encode_concept

TOKENS = 2
"""Of the class word "red flower"."""


def method_of(studio: Studio, settings: dict) -> nn.Module:
    backbone = studio.encoded.backbone()
    return parse_method(settings).build(backbone, _start(studio.encoded, backbone, ["red flower"]))


def test_cones_never_runs_the_text_encoder_and_moves_its_own_rows_only(studio: Studio, monkeypatch) -> None:
    def refuse(*given: object) -> None:
        raise AssertionError("the text encoder ran")

    monkeypatch.setattr(Diffusion, "_told", refuse)
    row = studio.search(CONES)
    assert (row.cost["text_encoder_calls"], row.cost["trained_parameters"]) == (0, TOKENS * 32)
    text, before = row.concept.text, studio.encoded.text
    own = before.owner == 0
    assert torch.equal(text.owner, before.owner)
    assert torch.equal(text.embeds[~own], before.embeds[~own].half().float())
    moved = text.embeds[own].reshape(len(own), TOKENS, -1)
    assert torch.equal(moved, moved[:1].expand_as(moved))
    assert (moved[0] - before.embeds[own].reshape(len(own), TOKENS, -1).mean(0)).abs().min() > 0


@pytest.mark.parametrize(
    ("settings", "count", "sentences"),
    [
        ({"n_tokens": 3}, 3 * 32, 27),
        ({"rows": "all"}, 32 * 32, 1),
        ({"rows": 5}, 5 * 32, 27),
        ({"init": "random"}, TOKENS * 32, 27),
    ],
)
def test_other_rows_are_searched_when_asked(studio: Studio, settings: dict, count: int, sentences: int) -> None:
    method = method_of(studio, {**CONES, **settings})
    assert sum(p.numel() for p in method.parameters()) == count
    told = method(["red flower"]).text_embeds
    assert told.embeds.shape == (sentences, 32, 32)
    assert (told.owner == 0).sum() == sentences * count // 32
    if settings.get("rows") == 5:
        assert told.owner[:, -5:].eq(0).all()
    else:
        untouched = told.owner[0] < 0
        assert untouched.any() == (settings.get("rows") != "all")


def test_more_tokens_than_the_word_has_start_apart(studio: Studio) -> None:
    rows = method_of(studio, {**CONES, "n_tokens": 5}).embeds
    assert torch.pdist(rows.detach()).min() > 0


def test_textual_inversion_trains_its_vectors_and_not_the_table(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    sd = studio.encoded.backbone()
    start = sd.word_vectors("red flower").clone()
    monkeypatch.setattr(Encoded, "backbone", lambda *_args: sd)
    row = studio.search(INVERSION)
    assert row.cost["trained_parameters"] == 32
    assert row.cost["text_encoder_calls"] > 4
    losses = [line["val_denoising_loss"] for line in row.result.curves]
    assert len(losses) == INVERSION["epochs"] + 1
    assert len(set(losses)) > 1  # so few and small steps may leave one as it was, to the digits that are told
    assert torch.equal(sd.word_vectors("red flower"), start)
    assert row.concept.tensors["searched.vectors"].shape == start[:1].shape
    assert row.concept.card.site == "text_tokens"


def test_each_picture_gets_a_sentence_of_its_own(studio: Studio) -> None:
    method = method_of(studio, CONES)
    features = next(studio.encoded.train.batches(3))
    drawn = [method(["x"], features, generator_for(0, step)).text_embeds.embeds for step in range(2)]
    assert drawn[0].shape == (3, 32, 32)
    assert not torch.equal(drawn[0], drawn[1])
    in_turns = method(["x"], features).text_embeds.embeds
    assert torch.equal(in_turns, method(["x"]).text_embeds.embeds[:3])


@pytest.mark.parametrize("settings", [CONES, {**INVERSION, "noise": NOISE}, {**CONES, "noise": NOISE, "rows": "all"}])
def test_a_stopped_search_resumes_to_the_same_bits(studio: Studio, tmp_path: Path, settings: dict) -> None:
    class Stopped(Exception):
        pass

    def stop(line: dict) -> None:
        if line["epoch"] == 2:
            raise Stopped

    whole = studio.search(settings)
    checkpoint = tmp_path / "state.safetensors"
    with pytest.raises(Stopped):
        studio.search(settings, checkpoint=checkpoint, on_epoch=stop)
    told: list[float] = []
    resumed = studio.search(settings, checkpoint=checkpoint, on_epoch=lambda line: told.append(line["epoch"]))
    assert told == [2, 3, 4]
    assert resumed.result.curves == whole.result.curves
    assert resumed.metrics == whole.metrics
    for name, tensor in whole.concept.tensors.items():
        assert torch.equal(tensor, resumed.concept.tensors[name])


def test_another_seed_draws_other_noise(studio: Studio) -> None:
    other = replace(studio.encoded, about={**studio.encoded.about, "seed": 1})
    first = studio.search(CONES).result.curves
    again = Studio(studio.folder, studio.concept, studio.backbone, other, studio.accelerator).search(CONES)
    assert again.result.curves[1]["train_loss"] != first[1]["train_loss"]


def test_the_best_on_the_fixed_batch_is_kept(studio: Studio) -> None:
    row = studio.search({**CONES, "epochs": 6})
    losses = [line["val_denoising_loss"] for line in row.result.curves]
    assert row.metrics["denoising_loss"] == pytest.approx(min(losses), abs=2e-6)
    assert row.result.steps_to_best == row.result.curves[losses.index(min(losses))]["step"]


def test_a_batch_in_parts_has_the_gradient_of_the_whole(studio: Studio, accelerator, monkeypatch) -> None:
    """On a loss without noise, where the parts are of different sizes: 3 pictures in 2 parts."""

    class Method(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embeds = nn.Parameter(torch.zeros(1, 1, 4))

        def forward(self, names, features=None, generator=None) -> Prompts:
            mask = torch.ones(1, 1, dtype=torch.bool)
            return Prompts(text_embeds=TextEmbeds(self.embeds, mask, torch.zeros(1, dtype=torch.long)))

    def loss(features: Features, text: TextEmbeds, generator: object) -> Tensor:
        seen = features.tensors["mean"].flatten(1)[:, :4]
        return (text.embeds[0] - seen).square().sum(1).mean()

    seen: list[Tensor] = []
    backbone = studio.encoded.backbone()
    monkeypatch.setattr(backbone, "objective", lambda settings: loss)
    for parts in (1, 2):
        settings = Searched(optimiser="sgd", momentum=0, lr=0.5, batch_size=3, accumulate=parts, warmup_epochs=0)
        method = Method()
        stores = (studio.encoded.train, studio.encoded.val)
        work = Epochs(method, backbone, ["x"], *stores, settings, 0, accelerator, "generation", lambda epoch: None)
        work.begin(Progress())
        list(work.steps(0))
        seen.append(method.embeds.detach().flatten())
        assert learning_rate(settings, 0, 1) == 0.5
    assert torch.allclose(seen[0], seen[1], atol=1e-6)
    assert seen[0].abs().min() > 0


def test_less_memory_gives_the_same_search(studio: Studio) -> None:
    plain, spared = (studio.search({**CONES, "gradient_checkpointing": spare}) for spare in (False, True))
    assert torch.allclose(plain.concept.tensors["text_embeds"], spared.concept.tensors["text_embeds"], atol=1e-4)


def test_a_search_can_be_watched(studio: Studio, tmp_path: Path) -> None:
    studio.search({**CONES, "sample_every": 2}, samples=tmp_path / "samples")
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["000004.jpg", "000008.jpg"]


def test_pictures_on_the_way_are_not_counted(studio: Studio, accelerator, tmp_path: Path, monkeypatch) -> None:
    once = {**INVERSION, "epochs": 1}
    plain, watched = (studio.search(once | more, samples=tmp_path) for more in ({}, {"sample_every": 1}))
    assert len(list(tmp_path.iterdir())) == 1
    assert watched.cost["text_encoder_calls"] == plain.cost["text_encoder_calls"]
    now = [0.0]
    monkeypatch.setattr("cones.search.loop.time.perf_counter", lambda: now[0])

    def watch(epoch: int) -> None:
        now[0] += 100

    backbone, (train, val) = studio.encoded.backbone(), (studio.encoded.train, studio.encoded.val)
    result = search(
        method_of(studio, CONES), backbone, ["x"], train, val, parse_method(CONES), 0, accelerator, task="generation",
        watch=watch,
    )  # fmt: skip
    assert now == [100.0 * CONES["epochs"]]
    assert result.seconds == 0


def test_no_field_of_a_text_is_lost_on_the_way(studio: Studio) -> None:
    text = replace(studio.encoded.text, pooled=torch.randn(len(studio.encoded.text.embeds), 5))
    assert torch.equal(text.in_turns(30).pooled, text.pooled[torch.arange(30) % 27])
    one = text.at(torch.tensor([3]))
    assert torch.equal(one.pooled, text.pooled[3:4])
    assert torch.equal(one.owner, text.owner[3:4])
    flat = replace(one, owner=one.owner[0])
    sentences = SentenceCones(text, places_of(text.owner, "own"), torch.zeros(TOKENS, 32))
    for method, pooled in (
        (FixedSentences(text), text.pooled), (sentences, text.pooled),
        (Cones(flat), one.pooled), (LanguagePrompt(flat), one.pooled), (FixedText(flat), one.pooled),
    ):  # fmt: skip
        assert torch.equal(method(["x"]).text_embeds.pooled, pooled)
    drawn = _drawn(text, studio.encoded.train.batch(torch.tensor([0, 1])), generator_for(0))
    assert drawn.pooled.shape == (2, 5)


def test_a_map_from_captions_tells_more_than_the_mean(studio: Studio, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("cones.methods.warmstart.PHRASES", 200)
    sd, clip = studio.encoded.backbone(), studio.encoded.clip()
    kept = fit_map(sd, clip, "a photo of a {}", "own")
    phrases = random_phrases(sd.tokenizer)[:20]
    right = torch.stack(
        [t.embeds[0, t.owner[0] == 0][-1] for t in (sd.embed_text([p], templates=["a photo of a {}"]) for p in phrases)]
    )
    told = (kept["texts"][:20] - kept["text_mean"]) @ kept["map"] + kept["row_mean"]
    assert (told - right).square().mean() < 0.5 * (right - kept["row_mean"]).square().mean()
    feature = clip.embed_text([phrases[0]], templates=["a photo of a {}"]).embeds[0, 0]
    rows = pictured_rows(sd, clip, feature, "a photo of a {}", "own", ("a", "b"), tmp_path)
    assert rows.shape == (1, 32)
    path = next(tmp_path.rglob("*.safetensors"))
    with monkeypatch.context() as patch:
        patch.setattr(sd, "embed_text", None)
        again = pictured_rows(sd, clip, feature, "a photo of a {}", "own", ("a", "b"), tmp_path)
        assert torch.equal(rows, again)
        fitted = load_file(path)
    save_file({**fitted, "row_mean": -fitted["row_mean"]}, path)
    mended = pictured_rows(sd, clip, feature, "a photo of a {}", "own", ("a", "b"), tmp_path)
    assert torch.allclose(rows, mended, atol=1e-6)


def test_a_subjects_pictures_are_opened_once_for_all_views_and_for_clip(
    studio: Studio, tmp_path: Path, opened_pictures: Counter
) -> None:
    drawn = draw(studio.concept, studio.folder / "prepared")
    encoded = encode_concept("zorb", studio.concept, studio.backbone, drawn, tmp_path / "encoded")
    assert opened_pictures == {("train", i): 1 for i in drawn.shown} | {("val", i): 1 for i in drawn.held}
    assert encoded.train.views == 2
    clip = encoded.clip()
    pictures = [drawn.train.picture(i) for i in drawn.shown]
    assert torch.equal(encoded.seen, clip.encode(clip.pixels(pictures))["image"].mean(0))


def test_a_search_can_start_from_the_pictures(studio: Studio, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("cones.methods.warmstart.PHRASES", 200)
    monkeypatch.setattr("cones.search.row.CACHE", tmp_path)
    rows = method_of(studio, {**CONES, "init": "image", "n_tokens": 1}).embeds
    word = method_of(studio, {**CONES, "n_tokens": 1}).embeds
    assert rows.shape == word.shape
    assert not torch.allclose(rows, word, atol=1e-2)
    assert studio.search({**CONES, "init": "image", "epochs": 1}).cost["text_encoder_calls"] == 0


def test_only_what_the_mask_shows_counts(studio: Studio) -> None:
    sd = studio.encoded.backbone()
    features = next(studio.encoded.train.batches(3))
    mask = torch.zeros(3, 1, 8, 8)
    mask[:, :, :4] = 1
    masked = Features({**features.tensors, "mask": mask}, features.views)
    text = studio.encoded.text.in_turns(3)
    losses = [float(sd.objective()(f, text, generator_for(1))) for f in (features, masked)]
    whole = Features({**features.tensors, "mask": torch.ones(3, 1, 8, 8)}, features.views)
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)
    assert float(sd.objective()(whole, text, generator_for(1))) == pytest.approx(losses[0], rel=1e-5)


def test_the_loop_sees_no_test_picture(studio: Studio, tmp_path: Path) -> None:
    """The encoded concept, which is all that a search is given, holds none of them."""
    from cones.data.prepared import Split

    test = {r.id for r in Split.open(studio.folder / "prepared/test").records}
    assert not test & {*studio.encoded.train.ids, *studio.encoded.val.ids}
