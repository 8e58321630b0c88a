"""Fine-tuning: exactly the weights that a kind lists move, the file holds them, and a stopped run ends the same."""

import json
import runpy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask
from safetensors.torch import load, load_file
from torch import Tensor
from toys import toy_glip_config, write_toy_glip

from cones.backbones.glip import Glip
from cones.concept import WEIGHTS_FILE, Concept
from cones.config import BackboneConfig, DetectionConcept, FinetuneConfig, RunConfig, SceneData, parse_method
from cones.data import prepare
from cones.encoded import Encoded
from cones.encoding import draw, encode_concept
from cones.errors import BackboneError, ConceptError, DataError, SearchError
from cones.evaluation import evaluate_rows
from cones.files import file_hash, read_json
from cones.finetuning import FinetunedRow, finetune_row
from cones.rows import search_row
from cones.tasks import TASKS
from cones.tuning import rate_share

ROOT = Path(__file__).parent.parent
KINDS = ("head", "lora", "full", "mask_head")
RANK, TEXT_WIDTH = 2, 96


@pytest.fixture(scope="session")
def maskless_glip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = toy_glip_config()
    del config["mask_head"]
    return write_toy_glip(tmp_path_factory.mktemp("toy-glip") / "maskless", config)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    prepare(SceneData(kind="scenes", vocabulary="novel", size=64, train=20, val=12, test=12), folder / "prepared")
    return folder / "prepared"


class Bench:
    """A concept that is encoded, and a row of it to start from."""

    def __init__(self, scenes: Path, glip: Path, folder: Path, accelerator, task: str = "segmentation") -> None:
        concept = DetectionConcept(task=task, backbone="toy", data="scenes", shots=1)
        config = BackboneConfig(kind="glip", source=str(glip))
        self.scenes, self.accelerator, self.folder = scenes, accelerator, folder
        self.encoded = encode_concept("toy", concept, config, draw(concept, scenes), folder / "encoded")
        run = RunConfig(concept="toy", method=parse_method({"name": "zero_shot"}))
        self.start = search_row("zero", run, self.encoded, accelerator).concept
        self.base = load_file(glip / "model.safetensors")

    def finetune(self, kind: str, checkpoint: Path | None = None, on_step: Callable = lambda line: None, **more):
        settings = {"steps": 2, "batch_size": 4, "lr": 0.01, "validate_every": 2, "rank": RANK} | more
        parsed = FinetuneConfig.model_validate({"concept": "toy", "from": "zero", "kind": kind, **settings})
        return finetune_row("row", parsed, self.start, self.encoded, self.accelerator, self.scenes, checkpoint, on_step)

    def saved(self, row: FinetunedRow, folder: Path) -> Concept:
        folder.mkdir(parents=True, exist_ok=True)
        row.concept.save(folder / "concept.safetensors")
        (folder / WEIGHTS_FILE).write_bytes(row.weights)
        return Concept.load(folder / "concept.safetensors")

    def predict(self, backbone: Glip, concept: Concept) -> list[Tensor]:
        """Boxes, scores, labels and masks of the validation pictures, one tensor after the other."""
        predictions = backbone.predict(self.encoded.val.batch(torch.arange(len(self.encoded.val))), concept.text)
        found = [(i.boxes, i.scores, i.labels, i.masks) for i in predictions.instances]
        return [t for one in found for t in one if t is not None]


@pytest.fixture(scope="session")
def bench(toy_glip: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory, accelerator) -> Bench:
    return Bench(scenes, toy_glip, tmp_path_factory.mktemp("bench"), accelerator)


@pytest.fixture(scope="session")
def maskless(maskless_glip: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory, accelerator) -> Bench:
    return Bench(scenes, maskless_glip, tmp_path_factory.mktemp("maskless"), accelerator, "detection")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Glip]:
    """The base models that a fine-tuning opened: the one that it trained, then the one that was judged."""
    found: list[Glip] = []
    opening = Encoded.backbone
    monkeypatch.setattr(Encoded, "backbone", lambda *given: found.append(opening(*given)) or found[-1])
    return found


def judge_by_distance(monkeypatch: pytest.MonkeyPatch, sign: int) -> None:
    """Validate by how far predictions are from the start's, where random weights score no points in the real one."""
    first: list[Tensor] = []

    def quick(predictions, *given) -> dict[str, float]:
        area = sum(mask.area(list(i.regions)).sum() for p in predictions for i in p.instances if i.regions)
        found = torch.cat([*(p.scores.flatten() for p in predictions), torch.tensor([float(area)])])
        first.append(found)
        far = sign * float((found - first[0]).abs().sum())
        return {"mask_ap": far, "box_ap": far, "box_ap50": far}

    for task in ("detection", "segmentation"):
        monkeypatch.setitem(TASKS, task, replace(TASKS[task], quick=quick))


@pytest.fixture
def furthest_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    judge_by_distance(monkeypatch, 1)


@pytest.fixture
def nearest_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    judge_by_distance(monkeypatch, -1)


BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
TRAINS = {
    "head": ("bbox_head.", "mask_head."),
    "full": ("backbone.", "neck.", "bbox_head.", "mask_head."),
    "mask_head": ("mask_head.",),
}


def state_of(backbone: Glip) -> dict[str, Tensor]:
    """All its weights but the text encoder's, without what LoRA adds beside them."""
    parts = ("backbone", "neck", "bbox_head", "mask_head")
    state = {f"{p}.{n}": t for p in parts for n, t in backbone.part(p).state_dict().items()}
    return {n.replace(".base_layer.", "."): t for n, t in state.items() if ".lora_" not in n}


def moved(backbone: Glip, base: dict[str, Tensor]) -> set[str]:
    """The names of the weights that are not, to the bit, what the base model's file has."""
    return {n for n, t in state_of(backbone).items() if not torch.equal(t, base[n].to(t.dtype))}


@pytest.mark.parametrize("kind", ["head", "full", "mask_head"])
def test_exactly_the_listed_weights_move(bench: Bench, opened, furthest_is_best, kind: str) -> None:
    row = bench.finetune(kind)
    wanted = {n for n in bench.base if n.startswith(TRAINS[kind]) and not n.endswith(BUFFERS)}
    assert set(load(row.weights)) == wanted
    trained, judged = opened
    assert moved(trained, bench.base) == moved(judged, bench.base) == wanted
    assert all(torch.equal(t, load(row.weights)[n]) for n, t in state_of(trained).items() if n in wanted)
    count = sum(bench.base[n].numel() for n in wanted)
    embeds = 0 if kind == "mask_head" else len(bench.start.text.owner) * TEXT_WIDTH
    assert row.cost["trained_parameters"] == row.concept.card.trained_parameters == count + embeds
    assert row.concept.card.finetune["trained_tensors"] == len(wanted)


def test_lora_trains_additions_to_the_linear_layers_of_the_head(bench: Bench, opened, furthest_is_best) -> None:
    row = bench.finetune("lora")
    linear = {n: t.shape for n, t in bench.base.items() if n.startswith("bbox_head.") and t.ndim == 2}
    assert len(linear) == 15
    added = {n: tuple(t.shape) for n, t in load(row.weights).items()}
    assert added == {
        f"{n}.{side}": shape
        for n, (out, into) in linear.items()
        for side, shape in (("lora_A", (RANK, into)), ("lora_B", (out, RANK)))
    }
    embeds = len(bench.start.text.owner) * TEXT_WIDTH
    assert row.cost["trained_parameters"] == sum(RANK * (out + into) for out, into in linear.values()) + embeds
    trained, judged = opened
    assert moved(trained, bench.base) == set()
    assert moved(judged, bench.base) == set(linear)
    features = bench.encoded.val.batch(torch.arange(4))

    @torch.no_grad()
    def seen(backbone: Glip) -> tuple:
        lang, _ = backbone._language(row.concept.text, 4)
        return backbone.head(tuple(features.tensors.values()), lang)

    beside, merged, plain = seen(trained), seen(judged), seen(bench.encoded.backbone())
    torch.testing.assert_close(merged, beside, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(merged[0][0], plain[0][0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["head", "lora", "full"])
def test_the_embeddings_go_on_training(bench: Bench, furthest_is_best, kind) -> None:
    text, start = bench.finetune(kind).concept.text, bench.start.text
    assert (text.embeds != start.embeds)[0].any(1).all()
    assert torch.equal(text.owner, start.owner)


@pytest.mark.parametrize("kind", ["head", "lora", "mask_head"])
def test_kinds_on_kept_features_load_no_encoder(bench: Bench, monkeypatch, tmp_path: Path, kind: str) -> None:
    def refuse(self) -> None:
        raise AssertionError("an encoder was loaded")

    for encoder in ("vision", "language_model"):
        monkeypatch.setattr(Glip, encoder, property(refuse))
    row = bench.finetune(kind)
    assert row.cost["text_encoder_calls"] == 0
    concept = bench.saved(row, tmp_path)
    bench.predict(concept.open_backbone(), concept)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_predicts_the_same(bench: Bench, opened, furthest_is_best, tmp_path: Path, kind) -> None:
    row = bench.finetune(kind)
    concept = bench.saved(row, tmp_path)
    loaded = concept.open_backbone()
    for made in opened[kind == "lora" :]:  # additions beside the weights differ in the last bits from merged ones
        found = bench.predict(made, row.concept)
        assert all(torch.equal(a, b) for a, b in zip(bench.predict(loaded, concept), found, strict=True))
        pixels = torch.randn(2, 3, 64, 64)
        assert torch.equal(loaded.encode(pixels)["p4"], made.encode(pixels)["p4"])
    assert concept.card.finetune["kind"] == kind
    assert concept.card.finetune["from"] == "zero"
    assert concept.card.weights_sha256 == file_hash(tmp_path / WEIGHTS_FILE)
    assert concept.card.val == row.metrics


def test_a_weights_file_that_is_missing_or_of_another_row_is_refused(bench: Bench, tmp_path: Path) -> None:
    concept = bench.saved(bench.finetune("head"), tmp_path / "one")
    bench.saved(bench.finetune("head", lr=0.02), tmp_path / "two")
    (tmp_path / "one" / WEIGHTS_FILE).unlink()
    with pytest.raises(ConceptError, match=r"was fine-tuned, and its weights.safetensors is not beside it"):
        concept.open_backbone()
    (tmp_path / "one" / WEIGHTS_FILE).write_bytes((tmp_path / "two" / WEIGHTS_FILE).read_bytes()[:-1] + b"x")
    with pytest.raises(ConceptError, match=r"is damaged or of another Concept"):
        concept.open_backbone()


@pytest.mark.parametrize(
    ("weights", "refusal"),
    [
        ({"bbox_heads.x": torch.zeros(1)}, r"hold bbox_heads.x, which a GLIP does not have"),
        ({"bbox_head.head.x": torch.zeros(1)}, r"bbox_head.head.x is not of this model"),
        ({"bbox_head.head.bias0.lora_A": torch.zeros(1, 1)}, r"bbox_head.head.bias0.lora_A is not of this model"),
    ],
)
def test_weights_that_fit_nowhere_are_refused(bench: Bench, weights: dict[str, Tensor], refusal: str) -> None:
    def use() -> None:
        backbone = bench.encoded.backbone()
        backbone.use_weights(weights, {})
        backbone.part("bbox_head")

    with pytest.raises(BackboneError, match=refusal):
        use()


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


def test_a_mask_head_for_a_model_that_has_none(maskless: Bench, tmp_path: Path) -> None:
    row = maskless.finetune("mask_head", steps=8, validate_every=4)
    assert row.concept.card.task == "segmentation"
    assert {"box_ap", "mask_ap"} <= set(row.metrics)
    losses = [line["train_loss"] for line in row.result.curves[1:]]
    assert losses[1] < losses[0]
    concept = maskless.saved(row, tmp_path)
    assert set(concept.tensors) == set(maskless.start.tensors)
    assert all(torch.equal(t, maskless.start.tensors[n]) for n, t in concept.tensors.items())
    held = maskless.encoded.val.batch(torch.arange(len(maskless.encoded.val)))
    before = maskless.encoded.backbone().predict(held, maskless.start.text)
    after = concept.open_backbone().predict(held, concept.text)
    assert torch.equal(before.scores, after.scores)
    for plain, masked in zip(before.instances, after.instances, strict=True):
        assert plain.masks is None
        assert masked.masks.shape == (len(plain.boxes), 64, 64)
        assert all(torch.equal(getattr(plain, n), getattr(masked, n)) for n in ("boxes", "scores", "labels"))
    assert row.metrics["box_ap"] == maskless.start.card.val["box_ap"]


def test_a_base_model_without_a_mask_head_can_be_tuned_for_boxes(maskless: Bench, opened) -> None:
    row = maskless.finetune("head")
    assert set(load(row.weights)) == {n for n in maskless.base if n.startswith("bbox_head.")}
    assert row.concept.card.task == "detection"


@pytest.mark.parametrize("kind", ["head", "lora", "full"])
def test_masks_without_a_mask_head_are_refused(maskless: Bench, monkeypatch, kind: str) -> None:
    asks = {**maskless.encoded.about, "task": "segmentation"}
    monkeypatch.setattr(maskless, "encoded", replace(maskless.encoded, about=asks))
    with pytest.raises(
        BackboneError, match=rf"no mask head, nor does `kind: {kind}` give it one; `kind: mask_head` does"
    ):
        maskless.finetune(kind)


def test_data_without_masks(toy_glip: Path, scenes: Path, tmp_path: Path, accelerator) -> None:
    """A mask head cannot learn from it, and is not among what the other kinds train."""
    shutil.copytree(scenes, tmp_path / "prepared")
    for manifest in (tmp_path / "prepared").glob("*/manifest.json"):
        content = read_json(manifest)
        for shown in (o for record in content["records"] for o in record["objects"]):
            shown["mask"] = None
        manifest.write_text(json.dumps(content))
    boxes = Bench(tmp_path / "prepared", toy_glip, tmp_path, accelerator, "detection")
    with pytest.raises(DataError, match=r"`kind: mask_head` learns masks, and pictures of `toy` have objects without"):
        boxes.finetune("mask_head")
    assert set(load(boxes.finetune("head").weights)) == {n for n in boxes.base if n.startswith("bbox_head.")}


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
    main = runpy.run_path(str(ROOT / "stages/finetune.py"))["main"]
    with pytest.raises(ConceptError, match=r"there is no Concept file searched/toy/zero/concept.safetensors"):
        main("tuned")
    bench.start.save(tmp_path / "searched/toy/zero/concept.safetensors")
    written = {}
    for time in range(2):
        main("tuned")
        out = tmp_path / "searched/toy/tuned"
        assert {p.name for p in out.iterdir()} == {
            "concept.safetensors", "weights.safetensors", "metrics.json", "cost.json", "curves.csv"
        }  # fmt: skip
        written[time] = [(out / n).read_bytes() for n in ("metrics.json", "curves.csv", "weights.safetensors")]
    assert written[0] == written[1]
    assert "tuned: val mask_ap" in capsys.readouterr().out
    assert (out / "curves.csv").read_text().splitlines()[0].startswith("epoch,step,train_loss,val_score,val_box_ap")
    Concept.load(out / "concept.safetensors").open_backbone().part("backbone")
