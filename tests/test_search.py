"""The search: only the method moves, the same seed gives the same bits, and a killed one goes on where it was."""

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cones.backbones import open_backbone
from cones.common.errors import BackboneError, SearchError
from cones.config.params import parse_method
from cones.config.tables import RunConfig
from cones.features.encoded import Encoded
from cones.interfaces.protocols import text_of
from cones.interfaces.randomness import generator_for
from cones.interfaces.texts import Prompts, TextEmbeds
from cones.methods.cones.module import BLENDS, Cones, start_embeddings
from cones.methods.context import ContextTokens
from cones.methods.searched import Searched
from cones.methods.start import class_means
from cones.search.checkpoint import Progress, load_checkpoint
from cones.search.epochs import search
from cones.search.row import search_row
from cones.search.schedule import learning_rate
from cones.tasks.classification.measure import MEASURES
from cones.tasks.ranking import rank

CONES = {"name": "cones", "lr": 0.01, "epochs": 6, "batch_size": 8, "patience": None, "checkpoint_seconds": 0}


def row(encoded: Encoded, accelerator, settings: dict = CONES, **extra):
    return search_row("row", RunConfig(concept="few", method=parse_method(settings)), encoded, accelerator, **extra)


@pytest.mark.parametrize("settings", [CONES, {"name": "coop", "n_ctx": 3, "epochs": 2, "batch_size": 8}])
def test_same_seed_same_result(encoded: Encoded, accelerator, settings: dict) -> None:
    first, second = row(encoded, accelerator, settings), row(encoded, accelerator, settings)
    assert first.metrics == second.metrics
    assert first.result.curves == second.result.curves
    for name, tensor in first.concept.tensors.items():
        assert torch.equal(tensor, second.concept.tensors[name])


def test_another_seed_shows_the_pictures_in_another_order(encoded: Encoded, accelerator) -> None:
    other = replace(encoded, about={**encoded.about, "seed": encoded.about["seed"] + 1})
    losses = [row(e, accelerator).result.curves[1]["train_loss"] for e in (encoded, other)]
    assert losses[0] != losses[1]


def test_numbers_side_by_side_all_count() -> None:
    drawn = {generator_for(*numbers).initial_seed() for numbers in ((1, 2), (2, 1), (1, 1), (2, 2), (2**40, 1), (0, 0))}
    assert len(drawn) == 6
    assert generator_for(3, 4).initial_seed() == generator_for(3, 4).initial_seed()


def test_cones_learns_and_never_runs_the_text_encoder(encoded: Encoded, accelerator, monkeypatch) -> None:
    from transformers.models.clip.modeling_clip import CLIPEncoder, CLIPTextModel

    def refuse(*args, **kwargs):
        raise AssertionError("an encoder ran")

    monkeypatch.setattr(CLIPTextModel, "forward", refuse)
    monkeypatch.setattr(CLIPEncoder, "forward", refuse)
    found = row(encoded, accelerator)
    assert found.cost["text_encoder_calls"] == 0
    assert found.cost["trained_parameters"] == 10 * 24
    assert found.result.curves[-1]["train_loss"] < found.result.curves[1]["train_loss"]


def test_coop_runs_it_at_every_step(encoded: Encoded, accelerator) -> None:
    found = row(encoded, accelerator, {"name": "coop", "n_ctx": 3, "epochs": 2, "batch_size": 8})
    validations = 3  # of the start, and after each epoch
    assert found.cost["steps"] == 8
    assert found.cost["text_encoder_calls"] == 8 + validations
    assert found.cost["trained_parameters"] == 3 * 32


def test_a_shared_text_is_encoded_once_a_validation(encoded: Encoded, accelerator, monkeypatch) -> None:
    monkeypatch.setitem(MEASURES, "classification", replace(MEASURES["classification"], batch=7))
    found = row(encoded, accelerator, {"name": "coop", "n_ctx": 3, "epochs": 2, "batch_size": 8})
    assert len(encoded.val) > 3 * 7
    assert found.cost["text_encoder_calls"] == 8 + 3


def test_prompts_for_the_image_encoder_of_a_detector_are_refused(encoded: Encoded, toy_glip: Path) -> None:
    class Visual(torch.nn.Module):
        def forward(self, names, features=None, generator=None) -> Prompts:
            return Prompts(text_embeds=encoded.text, visual_tokens=torch.zeros(1, 2, 32))

    with pytest.raises(
        BackboneError,
        match="Visual gives visual tokens, and a grounding backbone such as this one has no site",
    ):
        text_of(Visual(), open_backbone("glip", toy_glip), encoded.about["names"])


@pytest.mark.parametrize("kind", ["cones", "coop"])
def test_exactly_the_methods_parameters_move(encoded: Encoded, accelerator, kind: str) -> None:
    backbone = encoded.backbone()
    before = {n: t.clone() for n, t in backbone.model.state_dict().items()}
    method = Cones(encoded.text) if kind == "cones" else ContextTokens(torch.randn(2, 32))
    start = [p.clone() for p in method.parameters()]
    settings = parse_method({"name": kind, "epochs": 1, "warmup_epochs": 0, "lr": 0.01, "patience": None})
    steps: list[list[torch.Tensor]] = []

    def note(line: dict) -> None:
        steps.append([p.clone() for p in method.parameters()])

    names = encoded.about["names"]
    search(method, backbone, names, encoded.train, encoded.val, settings, 0, accelerator, on_epoch=note)
    assert all(not torch.equal(p, s) for p, s in zip(steps[-1], start, strict=True))
    assert all(torch.equal(t, before[n]) for n, t in backbone.model.state_dict().items())


def test_fewer_pictures_than_a_batch_still_train(encoded: Encoded, accelerator) -> None:
    found = row(encoded, accelerator, CONES | {"batch_size": 1000})
    assert found.result.steps == 6
    assert len({line["train_loss"] for line in found.result.curves[1:]}) == 6


def test_the_best_on_validation_is_kept(encoded: Encoded, accelerator) -> None:
    found = row(encoded, accelerator, CONES | {"lr": 0.3, "epochs": 20})
    best = max(found.result.curves, key=lambda line: (line["val_accuracy"], -line["val_loss"]))
    assert found.result.steps_to_best == best["step"]
    assert found.metrics["accuracy"] == pytest.approx(best["val_accuracy"], abs=1e-6)


def test_patience_stops_a_search(encoded: Encoded, accelerator) -> None:
    found = row(encoded, accelerator, CONES | {"lr": 1.0, "epochs": 200, "patience": 3})
    best = max(found.result.steps_to_best // 4, 1)
    assert len(found.result.curves) == 1 + best + 3


def test_the_first_validation_after_the_start_ends_no_search(encoded: Encoded, accelerator) -> None:
    settings = {"init": "image", "lr": 1e3, "warmup_epochs": 0, "validate_every": 5, "patience": 5, "epochs": 50}
    found = row(encoded, accelerator, CONES | settings)
    assert [line["epoch"] for line in found.result.curves] == [0, 5, 10]


def test_a_search_that_gets_worse_ends_where_it_began(encoded: Encoded, accelerator) -> None:
    """From the labels' own mean features, at a rate that throws them apart."""
    found = row(encoded, accelerator, CONES | {"init": "image", "lr": 1e3, "warmup_epochs": 0, "epochs": 2})
    scores = [(line["val_accuracy"], -line["val_loss"]) for line in found.result.curves]
    assert scores[0] > max(scores[1:])
    assert found.result.steps_to_best == 0
    assert found.metrics["accuracy"] == pytest.approx(scores[0][0], abs=1e-6)


def test_no_finite_score_is_worse_than_any() -> None:
    finite, worst, missing = ({"denoising_loss": v} for v in (9.0, math.nan, math.inf))
    assert rank("generation", finite) > rank("generation", worst)
    assert rank("generation", finite) > rank("generation", missing)
    assert rank("generation", finite) > rank("generation", {})
    progress = Progress()
    for epoch, metrics in enumerate((worst, finite)):
        progress.epoch = epoch
        progress.validated({}, metrics, "generation", dict)
    assert progress.best_epoch == 1
    sure, lost = {"accuracy": 0.3, "loss": 1.0}, {"accuracy": 0.9, "loss": math.nan}
    assert rank("classification", sure) > rank("classification", lost)
    with pytest.raises(SearchError, match=r"no validation gave a finite denoising_loss \(the first: .*nan"):
        Progress(best_metrics=worst).refuse_no_score("generation")


def test_a_loss_that_is_not_finite_names_the_step_and_the_rate(encoded: Encoded, accelerator) -> None:
    method = Cones(TextEmbeds.one_per_class(torch.full((10, 24), float("nan"))))
    settings = parse_method(CONES | {"warmup_epochs": 0})
    with pytest.raises(SearchError, match=r"the loss is nan at step 1 with learning rate 0.01; lower `lr`"):
        search(method, encoded.backbone(), encoded.about["names"], encoded.train, encoded.val, settings, 0, accelerator)


@pytest.mark.parametrize(
    "settings", [CONES, {"name": "coop", "n_ctx": 2, "epochs": 4, "batch_size": 8, "checkpoint_seconds": 0}]
)
def test_a_stopped_search_resumes_to_the_same_bits(encoded: Encoded, accelerator, tmp_path: Path, settings) -> None:
    whole = row(encoded, accelerator, settings)
    backbone, names = encoded.backbone(), encoded.about["names"]

    class Stopped(Exception):
        pass

    def stop(line: dict) -> None:
        if line["epoch"] == 3:
            raise Stopped

    parsed = parse_method(settings)
    checkpoint = tmp_path / "state.safetensors"

    def method():
        from cones.search.row import _start

        return parsed.build(backbone, _start(encoded, backbone, names))

    common = (backbone, names, encoded.train, encoded.val, parsed, 0, accelerator, checkpoint)
    with pytest.raises(Stopped):
        search(method(), *common, stop)
    resumed_method = method()
    resumed = search(resumed_method, *common)
    assert resumed.curves == whole.result.curves
    for name, parameter in resumed_method.named_parameters():
        kept = whole.concept.tensors
        assert torch.equal(parameter, kept.get(f"searched.{name}", kept["text_embeds"]))


def test_a_checkpoint_holds_no_pickle(encoded: Encoded, accelerator, tmp_path: Path) -> None:
    method = Cones(encoded.text)
    settings = parse_method(CONES)
    path = tmp_path / "state.safetensors"
    search(method, encoded.backbone(), encoded.about["names"], encoded.train, encoded.val, settings, 0, accelerator,
           path)  # fmt: skip
    fresh = Cones(TextEmbeds.one_per_class(torch.zeros_like(encoded.text.embeds)))
    progress = load_checkpoint(path, fresh, torch.optim.AdamW(fresh.parameters()))
    assert progress.epoch == 6
    assert b"pickle" not in path.read_bytes()
    assert path.read_bytes()[8:9] == b"{"


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    settings = Searched(epochs=10, lr=0.1, warmup_epochs=1, warmup_lr=1e-5)
    rates = [learning_rate(settings, step, 5) for step in range(50)]
    assert rates[:5] == [1e-5] * 5
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert 0 < rates[-1] < 0.001


def test_where_cones_starts() -> None:
    text, images = torch.randn(3, 8), torch.randn(3, 8)
    generator = torch.Generator().manual_seed(0)

    def start(init):
        wanted = torch.nn.functional.normalize(images, dim=-1)
        return start_embeddings(init, text, images, lambda e: float((e - wanted).norm()), generator)

    torch.testing.assert_close(start("text"), torch.nn.functional.normalize(text, dim=-1))
    torch.testing.assert_close(start("image"), torch.nn.functional.normalize(images, dim=-1))
    assert BLENDS[-1] == 0.0
    torch.testing.assert_close(start("blend"), start("image"))
    torch.testing.assert_close(start("random").norm(dim=-1), torch.ones(3))


def test_class_means_are_means_of_directions() -> None:
    features = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 5.0]])
    means = class_means(features, torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(means, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, 1.0]]))


def test_kill_minus_nine_and_resume(project) -> None:
    """A search stage killed in the middle goes on from its checkpoint and ends as an undisturbed one."""
    params = (project.folder / "params.yaml").read_text()
    project.params(params.replace("n_ctx: 2, epochs: 2", "n_ctx: 2, epochs: 60, checkpoint_seconds: 0"))
    for stage, target in (("prepare", "glyphs"), ("encode", "few")):
        assert project.stage(stage, target).returncode == 0
    process = subprocess.Popen([sys.executable, "stages/search.py", "few-coop"], cwd=project.folder)
    deadline = time.time() + 120
    while not list(project.folder.glob("checkpoints/*/state.safetensors")) and time.time() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (project.folder / "searched/few/few-coop").exists()
    search = ("python", "stages/search.py", "few-coop")
    again = project.run(*search)
    assert again.returncode == 0, again.stdout
    assert "resuming after epoch" in again.stdout
    resumed = {n: (project.folder / "searched/few/few-coop" / n).read_bytes() for n in ("metrics.json", "curves.csv")}
    assert not list(project.folder.glob("checkpoints/*/state.safetensors"))
    assert project.run(*search).returncode == 0
    assert resumed == {n: (project.folder / "searched/few/few-coop" / n).read_bytes() for n in resumed}
