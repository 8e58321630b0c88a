"""Fine-tuning CLIP from a row: low-rank additions to both encoders (CLIP-LoRA), and all of them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import Project
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from cones.backbones.clip.clip import Clip
from cones.common.errors import ConceptError
from cones.common.files import read_json
from cones.concept.file import WEIGHTS_FILE, Concept
from cones.config.params import parse_finetune, parse_method
from cones.data.prepared import Split
from cones.features.encoded import Encoded
from cones.finetuning.additions import add_lora
from cones.finetuning.dual_encoder import finetune_row
from cones.finetuning.tuned import FinetunedRow
from cones.inference.open import load
from cones.interfaces.pictures import Features
from cones.methods.searched import Row
from cones.results.evaluate import evaluate_rows
from cones.search.row import search_row
from cones.tasks.classification.live import live_pictures
from cones.tasks.classification.settings import ClassificationConcept

CONCEPT = ClassificationConcept(task="classification", backbone="toy", data="glyphs", shots=3, views=2)
WIDTH, LAYERS, JOINT = 32, 2, 24
"""Of both encoders of the toy CLIP."""
Tune = Callable[..., FinetunedRow]


@pytest.fixture(scope="module")
def starts(encoded: Encoded, accelerator: Accelerator) -> Callable[[str], Concept]:
    made: dict[str, Concept] = {}

    def start(name: str) -> Concept:
        if name not in made:
            method = parse_method({"name": name, **{"cones": {"epochs": 3}, "cocoop": {"epochs": 1}}.get(name, {})})
            made[name] = search_row(f"few-{name}", Row(concept="few", method=method), encoded, accelerator).concept
        return made[name]

    return start


@pytest.fixture
def tune(starts: Callable[[str], Concept], encoded: Encoded, accelerator: Accelerator) -> Tune:
    data = encoded.folder.parent / "prepared"

    def finetune(kind: str, start: str = "zero_shot", on_step: Any = lambda line: None, checkpoint=None, **more: Any):
        settings = {"steps": 4, "batch_size": 8, "lr": 0.01, "validate_every": 2, **more}
        parsed = parse_finetune({"concept": "few", "from": "a", "kind": kind, **settings})
        live = partial(live_pictures, CONCEPT, data)
        return finetune_row("row", parsed, starts(start), encoded, accelerator, data, checkpoint, on_step, live=live)

    return finetune


def weights_of(row: FinetunedRow, folder: Path) -> dict[str, Tensor]:
    (folder / WEIGHTS_FILE).write_bytes(row.weights)
    return load_file(folder / WEIGHTS_FILE)


def saved(row: FinetunedRow, folder: Path) -> Path:
    (folder / WEIGHTS_FILE).write_bytes(row.weights)
    row.concept.save(folder / "concept.safetensors")
    return folder / "concept.safetensors"


def test_lora_adds_to_queries_keys_and_values_of_both_encoders(tune: Tune, tmp_path: Path) -> None:
    row = tune("lora", rank=2)
    names = {
        f"{side}_model.encoder.layers.{layer}.self_attn.{one}_proj.weight.lora_{ab}"
        for side in ("text", "vision")
        for layer in range(LAYERS)
        for one in "qkv"
        for ab in "AB"
    }
    assert set(weights_of(row, tmp_path)) == names
    assert row.cost["trained_parameters"] == 2 * LAYERS * 3 * 2 * (WIDTH + WIDTH)


@pytest.mark.parametrize(("encoders", "begins"), [("image", "vision_model"), ("text", "text_model")])
def test_one_encoder_can_be_trained_alone(encoders: str, begins: str, tune: Tune, tmp_path: Path) -> None:
    row = tune("lora", encoders=encoders)
    assert all(name.startswith(begins) for name in weights_of(row, tmp_path))


def test_clip_lora_at_full_size(clip: Clip) -> None:
    """ViT-B/16: rank 2 on three matrices of twelve layers, 768 wide in one encoder and 512 in the other."""
    from transformers import CLIPConfig, CLIPModel

    with torch.device("meta"):
        clip.model = CLIPModel(CLIPConfig(vision_config={"patch_size": 16}))
        part, layers = clip.lora_layers()
        added = add_lora(part, clip.part(part), 2, 0, layers)
    assert sum(p.numel() for p in added.values()) == 2 * (768 + 768) * 3 * 12 + 2 * (512 + 512) * 3 * 12 == 184_320


def test_full_trains_all_but_the_temperature(tune: Tune, encoded: Encoded, tmp_path: Path) -> None:
    weights = weights_of(tune("full", lr=0.001, steps=2), tmp_path)
    assert set(weights) == set(dict(encoded.backbone("cpu").model.named_parameters())) - {"logit_scale"}


def test_embeddings_of_a_searched_row_go_on_training(tune: Tune, tmp_path: Path) -> None:
    row = tune("lora", "cones", prompt_lr=0.05)
    assert all(name.startswith("vision_model") for name in weights_of(row, tmp_path))
    assert row.cost["trained_parameters"] == LAYERS * 3 * 4 * (WIDTH + WIDTH) + 10 * JOINT
    assert row.cost["text_encoder_calls"] == 0


@pytest.mark.parametrize("start", ["zero_shot", "cones"])
def test_it_learns_what_it_is_shown(start: str, tune: Tune) -> None:
    row = tune("full", start, steps=40, validate_every=10, lr=0.002)
    losses = [line["train_loss"] for line in row.result.curves if "train_loss" in line]
    assert losses[-1] < losses[0]


def test_validation_never_ends_below_the_start(tune: Tune, starts: Callable[[str], Concept]) -> None:
    row = tune("full", lr=0.3, steps=3)
    assert row.metrics["accuracy"] >= starts("zero_shot").card.val["accuracy"]


def test_a_saved_one_is_the_tuned_model(tune: Tune, encoded: Encoded, class_folders: Path, tmp_path: Path) -> None:
    """Text and pictures are those of the base model with the weights put in by hand."""
    row = tune("lora", rank=2, alpha=3.0)
    opened = load(saved(row, tmp_path))
    by_hand, weights = encoded.backbone("cpu"), weights_of(row, tmp_path)
    state = by_hand.model.state_dict()
    for name in {n.rpartition(".")[0] for n in weights}:
        state[name] = state[name] + 3.0 / 2 * weights[f"{name}.lora_B"] @ weights[f"{name}.lora_A"]
    by_hand.model.load_state_dict(state)
    text = by_hand.embed_text(opened.card.names, templates=opened.card.templates)
    assert torch.allclose(opened.text.embeds, text.embeds, atol=1e-5)
    picture = next(class_folders.rglob("*.png"))
    image = by_hand.encode(by_hand.pixels([Image.open(picture)]))["image"].clone()
    logits = by_hand.logits(Features({"image": image}, torch.zeros(1, dtype=torch.long)), text)[0]
    (told,) = opened.predict([picture])
    assert list(told.scores.values()) == pytest.approx(logits.softmax(0).tolist(), abs=1e-5)


def test_the_test_pictures_are_encoded_by_the_tuned_model(tune: Tune, encoded: Encoded, tmp_path: Path) -> None:
    path = saved(tune("full", steps=1, validate_every=1, lr=0.003), tmp_path)
    found = evaluate_rows({"row": path}, encoded.folder.parent / "prepared/test", tmp_path / "cache")["row"]
    tuned, plain = encoded.backbone("cpu"), encoded.backbone("cpu")
    tuned.use_weights(*Concept.load(path).weights())
    split = Split.open(encoded.folder.parent / "prepared/test")
    pixels = plain.pixels([split.picture(3)])
    stored = found.store.batch(torch.tensor([3])).tensors["image"]
    assert torch.allclose(stored, tuned.encode(pixels)["image"], atol=2e-3)


def test_dropout_comes_from_the_seed(tune: Tune) -> None:
    one, two, none = (tune("lora", dropout=share).result.curves for share in (0.5, 0.5, 0.0))
    assert [line.get("train_loss") for line in one] == [line.get("train_loss") for line in two]
    assert one[-1]["train_loss"] != none[-1]["train_loss"]


class Killed(Exception):
    pass


@pytest.mark.parametrize(("kind", "start"), [("lora", "zero_shot"), ("full", "cones")])
def test_a_killed_one_goes_on_to_the_same_bits(kind: str, start: str, tune: Tune, tmp_path: Path) -> None:
    settings = {"steps": 6, "checkpoint_seconds": 0}
    whole = tune(kind, start, **settings)

    def kill(line: dict[str, float]) -> None:
        if line["step"] == 4:
            raise Killed

    path = tmp_path / "checkpoint" / "state.safetensors"
    with pytest.raises(Killed):
        tune(kind, start, kill, path, **settings)
    assert path.exists()
    again = tune(kind, start, checkpoint=path, **settings)
    assert again.weights == whole.weights
    assert again.metrics == whole.metrics


def test_a_start_that_goes_by_features_is_refused(tune: Tune) -> None:
    with pytest.raises(ConceptError, match="was found by linear_probe, which goes by features of the encoders as they"):
        tune("lora", "linear_probe")


def test_a_start_with_a_text_for_each_picture_is_refused(tune: Tune) -> None:
    with pytest.raises(ConceptError, match="gives each picture a text of its own by cocoop"):
        tune("lora", "cocoop")


def test_the_text_encoder_has_no_part_in_searched_embeddings(tune: Tune) -> None:
    with pytest.raises(ConceptError, match=r"has embeddings of cones in their place; start from zero_shot"):
        tune("full", "cones", encoders="text")


PARAMS = """
backbones:
  toy: {kind: clip, source: models/backbones/toy}
data:
  glyphs: {kind: world, source: cones/synthetic, vocabulary: novel, size: 32, train: 6, val: 4, test: 5}
concepts:
  few: {task: classification, backbone: toy, data: glyphs, shots: 2, seed: 0, views: 2}
runs:
  few-zero-shot: {concept: few, method: {name: zero_shot}}
  few-cones: {concept: few, method: {name: cones, epochs: 3}}
finetunes:
  few-lora: {concept: few, from: few-zero-shot, kind: lora, rank: 2, steps: 3, lr: 2.0e-3}
  few-full: {concept: few, from: few-cones, kind: full, steps: 2, lr: 1.0e-4}
"""


def test_the_graph_runs_registers_and_predicts(project: Project, class_folders: Path) -> None:
    project.params(PARAMS)
    done = project.run("dvc", "repro")
    assert done.returncode == 0, done.stdout
    metrics = read_json(project.folder / "evaluated/few/metrics.json")
    assert set(metrics) == {"few-zero-shot", "few-cones", "few-lora", "few-full"}
    assert project.cones("register").returncode == 0
    picture = next(class_folders.rglob("*.png"))
    told = project.cones("predict", "searched/few/few-lora/concept.safetensors", str(picture))
    assert told.returncode == 0, told.stdout
    assert project.beyond_plan("finetune", "few-lora") == set()
