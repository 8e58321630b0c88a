"""Fine-tuning as a run: what it is shown, stop and resume, the best kept, its cost, its evaluation, its stage."""

import json
import runpy
import shutil
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetunes import KINDS, ROOT, Bench, moved
from PIL import Image
from torch import Tensor

from cones.common.errors import ConceptError, DataError, SearchError
from cones.common.files import read_json
from cones.concept.file import Concept
from cones.config.params import load_params
from cones.config.plan import write_plan
from cones.data.prepared import Split
from cones.inference.open import load
from cones.interfaces.pictures import WHOLE
from cones.readers.prepare import prepare
from cones.readers.world import SceneData
from cones.results import evaluate
from cones.results.evaluate import evaluate_rows
from cones.search.schedule import rate_share
from cones.tasks.detection.encode import encode_objects


class Stopped(Exception):
    pass


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_resumes_to_the_same_bits(bench: Bench, furthest_is_best, tmp_path: Path, kind: str) -> None:
    def stop(line: dict[str, float]) -> None:
        if line["step"] == 4:
            raise Stopped

    settings = {"steps": 5, "validate_every": 3, "checkpoint_seconds": 0.0, "batch_size": 3}
    whole = bench.finetune(kind, **settings)
    checkpoint = tmp_path / "state.safetensors"
    with pytest.raises(Stopped):
        bench.finetune(kind, checkpoint, stop, **settings)
    steps: list[float] = []
    resumed = bench.finetune(kind, checkpoint, lambda line: steps.append(line["step"]), **settings)
    assert steps == [4, 5]
    assert whole.result.steps_to_best in (3, 5)
    assert resumed.weights == whole.weights
    assert resumed.result.curves == whole.result.curves
    assert [line["step"] for line in whole.result.curves] == [0, 3, 5]
    assert resumed.metrics == whole.metrics
    assert torch.equal(resumed.concept.text.embeds, whole.concept.text.embeds)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_gets_worse_ends_where_it_began(bench: Bench, opened, nearest_is_best, kind: str) -> None:
    row = bench.finetune(kind, lr=0.05, prompt_lr=0.1, steps=4)
    scores = [line["val_mask_ap"] for line in row.result.curves]
    assert scores[0] == 0 > max(scores[1:])
    assert row.result.steps_to_best == 0
    assert row.metrics == bench.start.card.val
    assert moved(opened[0], bench.base) == moved(opened[1], bench.base) == set()
    assert torch.equal(row.concept.text.embeds, bench.start.text.embeds)


def test_it_learns_and_costs_what_a_search_costs(bench: Bench) -> None:
    row = bench.finetune("head", steps=12, validate_every=4, batch_size=16)
    losses = [line["train_loss"] for line in row.result.curves[1:]]
    assert losses == sorted(losses, reverse=True)
    searched = {"search_seconds", "feature_seconds", "optimise_seconds", "steps", "steps_to_best"}
    assert set(row.cost) == searched | {"trained_parameters", "text_encoder_calls", "peak_memory_mb"}
    assert row.cost["steps"] == 12


def test_a_loss_that_is_not_finite_names_the_step_and_the_rates(bench: Bench) -> None:
    wanted = r"the loss is \S+ at step 2 with learning rates 5e\+29 for weights and 0.0005 for embeddings; lower `lr`"
    with pytest.raises(SearchError, match=wanted):
        bench.finetune("head", lr=1e30)


def test_learning_rates_warm_up_and_fall_to_zero() -> None:
    shares = [rate_share(step, 200) for step in range(200)]
    assert shares[:5] == [0.1] * 5
    assert shares[5:] == sorted(shares[5:], reverse=True)
    assert shares[5] > 0.99
    assert shares[-1] < 0.001
    assert [rate_share(step, 2) for step in range(2)] == [1.0, 0.5]


def test_other_pictures_than_those_searched_on_are_refused(bench: Bench, monkeypatch, tmp_path: Path) -> None:
    card = bench.start.card.model_copy(update={"split_hash": "0" * 64})
    with monkeypatch.context() as patch:
        patch.setattr(bench, "start", replace(bench.start, card=card))
        with pytest.raises(ConceptError, match=r"the row `zero` was searched on other pictures or another base model"):
            bench.finetune("head")
    other = SceneData(kind="scenes", vocabulary="novel", size=64, train=20, val=12, test=12, seed=1)
    prepare(other, tmp_path / "other")
    monkeypatch.setattr(bench, "scenes", tmp_path / "other")
    with pytest.raises(DataError, match=r"does not hold the pictures that were encoded"):
        bench.finetune("full")


@pytest.mark.parametrize("kind", ["full", "mask_head"])
def test_fine_tuned_rows_are_evaluated_with_their_weights(
    maskless: Bench, furthest_is_best, tmp_path: Path, kind: str
) -> None:
    """On the validation pictures it gives what the fine-tuning said, beside a row that is not fine-tuned."""
    shutil.copytree(maskless.scenes / "val", tmp_path / "val")
    manifest = read_json(tmp_path / "val/manifest.json")
    held = {i: n for n, i in enumerate(maskless.encoded.val.ids)}
    images = np.load(tmp_path / "val/images.npy")
    kept = sorted((held[r["id"]], i) for i, r in enumerate(manifest["records"]) if r["id"] in held)
    manifest["records"] = [manifest["records"][i] for _, i in kept]
    (tmp_path / "val/manifest.json").write_text(json.dumps(manifest))
    np.save(tmp_path / "val/images.npy", images[[i for _, i in kept]])
    row = maskless.finetune(kind, steps=6, validate_every=3)
    assert row.result.steps_to_best > 0
    maskless.saved(row, tmp_path / "tuned")
    maskless.start.save(tmp_path / "zero.safetensors")
    paths = {"zero": tmp_path / "zero.safetensors", "tuned": tmp_path / "tuned/concept.safetensors"}
    found = evaluate_rows(paths, tmp_path / "val", tmp_path / "cache")
    assert found["tuned"].metrics == row.metrics
    assert found["zero"].metrics == maskless.start.card.val


def test_the_stage(bench: Bench, toy_glip: Path, scenes: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(f"""
backbones:
  toy: {{kind: glip, source: {toy_glip}}}
data:
  scenes: {{kind: scenes, vocabulary: novel, size: 64, train: 20, val: 12, test: 12}}
concepts:
  toy: {{task: segmentation, backbone: toy, data: scenes, shots: 1}}
runs:
  zero: {{concept: toy, method: {{name: zero_shot}}}}
finetunes:
  tuned: {{concept: toy, from: zero, kind: full, steps: 3, batch_size: 2, validate_every: 2}}
""")
    shutil.copytree(bench.encoded.folder, "encoded/toy")
    for split in ("train", "val"):  # the test split is not there
        shutil.copytree(scenes / split, f"data/prepared/scenes/{split}")
    write_plan(load_params())
    main = runpy.run_path(str(ROOT / "stages/finetune.py"))["main"]
    with pytest.raises(ConceptError, match=r"there is no Concept file searched/toy/zero/concept.safetensors"):
        main("tuned")
    bench.start.save(tmp_path / "searched/toy/zero/concept.safetensors")
    written = {}
    for time in range(2):
        main("tuned")
        out = tmp_path / "searched/toy/tuned"
        assert {p.name for p in out.iterdir()} == {
            "concept.safetensors", "weights.safetensors", "metrics.json", "cost.json", "curves.csv", "samples"
        }  # fmt: skip
        written[time] = [(out / n).read_bytes() for n in ("metrics.json", "curves.csv", "weights.safetensors")]
    assert written[0] == written[1]
    assert "tuned: val mask_ap" in capsys.readouterr().out
    assert (out / "curves.csv").read_text().splitlines()[0].startswith("epoch,step,train_loss,val_score,val_box_ap")
    load(out / "concept.safetensors").open_backbone().part("backbone")


def test_one_model_is_open_at_a_time(maskless: Bench, tmp_path: Path, monkeypatch, capsys) -> None:
    """Rows of one model are judged together, and told in the order they came in."""
    maskless.saved(maskless.finetune("head", steps=1, validate_every=1), tmp_path / "tuned")
    shutil.copytree(tmp_path / "tuned", tmp_path / "again")
    (tmp_path / "zero").mkdir()
    maskless.start.save(tmp_path / "zero/concept.safetensors")
    opening, opened = evaluate.open_base, []

    def open_base(concept: Concept, device) -> Any:
        assert not [model for model in opened if model() is not None]
        backbone = opening(concept, device)
        opened.extend(weakref.ref(thing) for thing in (backbone, backbone.head, backbone.vision))
        return backbone

    monkeypatch.setattr(evaluate, "open_base", open_base)
    paths = {row: tmp_path / row / "concept.safetensors" for row in ("tuned", "zero", "again")}
    found = evaluate_rows(paths, maskless.scenes / "test", tmp_path / "cache")
    assert list(found) == list(paths)
    assert len(opened) == 2 * 3
    assert not [model for model in opened if model() is not None]
    assert found["tuned"].metrics == found["again"].metrics
    assert found["tuned"].store is found["zero"].store  # a tuned head leaves the pictures' features as they are


def test_an_object_detector_opens_a_picture_once_for_both_views(
    maskless: Bench, tmp_path: Path, opened_pictures: Counter
) -> None:
    split, encoded = Split.open(maskless.scenes / "train"), maskless.encoded
    rows, canvas = [5, 1, 2], tuple(encoded.about["canvas"])
    store = encode_objects(encoded.backbone(), split, rows, 2, canvas, tmp_path / "features")
    assert opened_pictures == {("train", i): 1 for i in rows}
    assert store.views == 2
    assert [p.labels for p in store.targets.pictures] == [[o.label for o in split.records[i].objects] for i in rows]


def test_a_picture_that_trains_what_encodes_it_is_decoded_once(
    bench: Bench, opened_pictures: Counter, monkeypatch
) -> None:
    live = bench.live()
    size, seeds = len(live), [torch.Generator().manual_seed(i) for i in range(3)]
    first = [live.sample(size, generator) for generator in seeds]
    assert set(opened_pictures.values()) == {1}
    assert len(opened_pictures) == size
    monkeypatch.setattr("cones.features.live.IN_MEMORY", 0)
    again = bench.live()
    for before, generator in zip(first, (torch.Generator().manual_seed(i) for i in range(3))):
        batch = again.sample(size, generator)
        assert all(torch.equal(t, batch.tensors[name]) for name, t in before.tensors.items())
    assert set(opened_pictures.values()) == {4}


def test_pictures_to_train_on_are_shrunk_and_their_boxes_with_them(bench: Bench) -> None:
    live = bench.live(least_scale=0.3)
    whole, shapes = bench.live(), []
    for seed in range(4):
        shrunk, plain = (p.sample(3, torch.Generator().manual_seed(seed)) for p in (live, whole))
        for small, full, at, of in zip(shrunk.instances, plain.instances, shrunk.geometry, plain.geometry):
            assert (at.original, at.padded, at.flipped) == (of.original, of.padded, of.flipped)
            shapes.append(at.content)
            ratio = torch.tensor([at.content[1] / of.content[1], at.content[0] / of.content[0]]).repeat(2)
            assert 0.28 < ratio.min() <= ratio.max() <= 1
            assert torch.allclose(small.boxes, full.boxes * ratio)
            assert torch.equal(small.labels, full.labels)
            assert torch.equal(small.crops, full.crops)
    assert len(set(shapes)) > 6


def test_a_shrunk_object_stands_where_its_box_says(bench: Bench, monkeypatch) -> None:
    """A white object on black, seen through the pixels that the image encoder is given."""
    live = bench.live(least_scale=0.4)
    objects = bench.encoded.train.targets.batch([0], [0])[0][0]
    x1, y1, x2, y2 = objects.boxes[0].round().int().tolist()
    shown = np.zeros((64, 64, 3), np.uint8)
    shown[y1:y2, x1:x2] = 255
    monkeypatch.setattr(Split, "picture", lambda self, i: Image.fromarray(shown))
    given: list[Tensor] = []
    monkeypatch.setattr(live.backbone, "pyramid", lambda pixels: given.append(pixels) or {})
    for seed in range(5):
        drawn = (torch.tensor([0]), torch.tensor([seed % 2]), WHOLE.of(1))
        monkeypatch.setattr(live.store, "drawn", lambda size, generator, share, drawn=drawn: drawn)
        batch = live.sample(1, torch.Generator().manual_seed(seed))
        ys, xs = (given[-1][0, 0] > 0).nonzero().unbind(1)
        seen = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert (seen - batch.instances[0].boxes[0]).abs().max() < 1


def test_colours_change_within_their_bounds_and_padding_stays(bench: Bench, monkeypatch) -> None:
    live, plain = bench.live(colour_jitter=0.25), bench.live()
    given: list[Tensor] = []
    for pictures in (live, plain):
        monkeypatch.setattr(pictures.backbone, "pyramid", lambda pixels: given.append(pixels) or {})
    wide = (64, 96)
    for pictures in (replace(live, canvas=wide), replace(plain, canvas=wide)):
        pictures.sample(4, torch.Generator().manual_seed(0))
    changed, whole = given
    assert torch.equal(changed[..., 64:], whole[..., 64:])
    for new, old in zip(changed[..., :64].flatten(0, 1).flatten(1), whole[..., :64].flatten(0, 1).flatten(1)):
        gain = float((new - new.mean()).norm() / (old - old.mean()).norm())
        shift = float(new.mean() - gain * old.mean())
        assert 0.75 <= gain <= 1.25
        assert abs(shift) <= 0.25 + 1e-4
        assert torch.allclose(new, gain * old + shift, atol=1e-4)
    assert not torch.allclose(changed, whole)
