"""Detection Concepts in use: predictions, their files, the registry, and joining."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from openings import ONCE
from PIL import Image
from pycocotools.coco import COCO
from safetensors.torch import load_file, save_file
from toys import toy_glip_config, write_toy_glip
from typer.testing import CliRunner

import cones
from cones.backbones.clip.clip import Clip
from cones.backbones.glip.glip import Glip
from cones.backbones.hub import base_hash
from cones.cli.main import app
from cones.common.errors import ConceptError, TrackingError
from cones.common.files import file_hash, read_json, write_json
from cones.concept.card import ConceptCard
from cones.concept.checks import WEIGHTS_KEY
from cones.concept.file import WEIGHTS_FILE, Concept
from cones.inference.join import save_joined
from cones.inference.open import OpenConcept, load
from cones.interfaces.base import BaseModelCard
from cones.interfaces.pictures import Features
from cones.registry.fetch import cache_folder
from cones.tasks.detection.infer import Detections

run = CliRunner()
SIZES = {"landscape.png": (100, 60), "portrait.png": (40, 90), "square.png": (64, 64), "tiny.png": (24, 20)}
"""Pictures by name, and their width and height."""


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GLIP that takes few text tokens."""
    return write_toy_glip(tmp_path_factory.mktemp("toy-glip") / "few", toy_glip_config() | {"max_text_tokens": 16})


def concept_of(folder: Path, *classes: str, kind: str = "glip", **more: Any) -> Concept:
    """A Concept of the class names as the text encoder reads them."""
    backbone = Glip(folder) if kind == "glip" else Clip(folder)
    text = backbone.embed_text(classes)
    card: dict[str, Any] = {
        "concept": "-".join(classes), "row": f"{'-'.join(classes)}-zero", "method": {"name": "zero_shot", "names": {}},
        "task": "segmentation" if kind == "glip" else "classification", "site": "text_embeds",
        "classes": list(classes), "names": list(classes), "templates": ["{}"],
        "base": BaseModelCard(name="toy", kind=kind, source=str(folder), revision=None, sha256=base_hash(folder)),
        "preprocessing": backbone.preprocessing, "shots": 2, "seed": 0, "split_hash": "0" * 64, "trained_parameters": 8,
        "val": {}, "versions": {"cones": "1"},
    }  # fmt: skip
    card |= {"score_threshold": 0.0, "canvas": (64, 64)} if kind == "glip" else {}
    tensors = {"text_embeds": text.embeds[0].clone(), "owner": text.owner.clone()}
    return OpenConcept(ConceptCard(**card | more), tensors, device="cpu")


@pytest.fixture
def concept(toy: Path) -> Concept:
    return concept_of(toy, "red ring", "blue star")


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Pictures of several shapes in a folder, and one that its EXIF orientation turns by a quarter."""
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(folder / name)
    turned = Image.open(folder / "landscape.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(folder / "turned.png", exif=exif)
    return sorted(folder.iterdir())


def same(one: Detections, other: Detections) -> bool:
    """Whether two findings in one picture are the same but for rounding."""
    close = torch.allclose(one.boxes, other.boxes, atol=1e-3) and torch.allclose(one.scores, other.scores, atol=1e-5)
    return close and (one.labels, one.size) == (other.labels, other.size)


def test_boxes_and_masks_are_in_the_pixels_of_each_picture(concept: Concept, pictures: list[Path]) -> None:
    found = dict(zip((p.name for p in pictures), concept.predict(pictures)))
    sizes = {name: (height, width) for name, (width, height) in SIZES.items()} | {"turned.png": (100, 60)}
    for name, (height, width) in sizes.items():
        one = found[name]
        assert one.size == (height, width)
        assert len(one) == len(one.labels) == len(one.scores) == 12
        assert one.boxes.min() >= 0
        assert (one.boxes <= torch.tensor([width, height, width, height])).all()
        assert (one.boxes[:, 2:] > one.boxes[:, :2]).all()
        assert max(one.boxes[:, 2:].max(0).values / torch.tensor([width, height])) > 0.9
        assert one.masks.shape == (12, height, width)
        assert one.masks.dtype == torch.bool
        assert one.scores.tolist() == sorted(one.scores.tolist(), reverse=True)
        assert set(one.labels) == {"red ring", "blue star"}
    upright = Image.open(pictures[0]).transpose(Image.Transpose.ROTATE_270)
    assert same(found["turned.png"], concept.predict([upright])[0])


def test_twice_the_picture_has_twice_the_boxes(concept: Concept) -> None:
    small, large = (Image.new("RGB", (side, side), (200, 90, 30)) for side in (64, 128))
    one, two = concept.predict([small, large])
    # GLIP counts pixels with both edges of a box, so a box may be a pixel of the smaller picture short.
    assert torch.allclose(2 * one.boxes, two.boxes, atol=1.01)
    assert (one.size, two.size, two.masks.shape[1:]) == ((64, 64), (128, 128), (128, 128))


def test_what_is_found_does_not_depend_on_the_other_pictures(concept: Concept, pictures: list[Path]) -> None:
    wide = Image.new("RGB", (300, 40), "red")
    alone = [concept.predict([p])[0] for p in pictures]
    together = concept.predict([wide, *reversed(pictures), *pictures], batch_size=3)
    assert len(together) == 11
    for one, before, after in zip(alone, reversed(together[1:6]), together[6:]):
        assert same(one, before)
        assert same(one, after)
    assert concept.predict([]) == []


def test_a_canvas_is_the_cards_or_larger(toy: Path, pictures: list[Path]) -> None:
    """Padded as in the search: the result is that of GLIP on exactly that canvas."""
    picture, glip = Image.open(pictures[1]), Glip(toy)
    for canvas, expected in (((64, 64), (64, 64)), ((32, 64), (64, 64)), (None, (64, 32))):
        concept = concept_of(toy, "red ring", canvas=canvas)
        pixels, geometry = glip.view([picture], expected)
        features = Features(dict(glip.encode(pixels)), torch.zeros(1, dtype=torch.long), geometry=geometry)
        right = glip.predict(features, concept.text).instances[0]
        found = concept.predict([picture])[0]
        assert torch.allclose(found.boxes, right.boxes, atol=1e-3)
        assert torch.equal(found.masks, right.masks)


def test_the_threshold_is_the_cards_unless_one_is_given(concept: Concept, pictures: list[Path], clip: Clip) -> None:
    scores = concept.predict(pictures)[0].scores.tolist()
    concept.card.score_threshold = scores[4]
    assert len(concept.predict(pictures)[0]) == 5
    assert len(concept.predict(pictures, threshold=scores[2])[0]) == 3
    nothing = concept.predict(pictures, threshold=1.0)[0]
    assert (len(nothing), nothing.boxes.shape, nothing.masks.shape) == (0, (0, 4), (0, 60, 100))
    assert str(nothing) == "nothing found"
    with pytest.raises(ConceptError, match=r"the threshold must be from 0 to 1, got 1.5"):
        concept.predict(pictures, threshold=1.5)
    whole = concept_of(clip.folder, "cat", "dog", kind="clip")
    with pytest.raises(ConceptError, match="`cat-dog` classifies whole pictures; a threshold is for boxes"):
        whole.predict(pictures, threshold=0.5)
    boxes = concept_of(concept.card.base.source and Path(concept.card.base.source), "red ring", task="detection")
    assert boxes.predict(pictures)[0].masks is None


def test_the_text_encoder_is_never_loaded(concept: Concept, pictures: list[Path]) -> None:
    concept.predict(pictures)
    assert {"vision", "head"} <= set(vars(concept.backbone))
    assert "language_model" not in vars(concept.backbone)
    assert concept.backbone.text_encoder_calls == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_finds_what_the_cpu_finds(concept: Concept, pictures: list[Path], toy_clip: Path) -> None:
    whole = concept_of(toy_clip, "cat", "dog", kind="clip")
    for one in (concept, whole):
        placed = replace(one, device="auto")
        assert placed.backbone.device.type == "cuda"
        for found, right in zip(placed.predict(pictures), one.predict(pictures)):
            if isinstance(found, Detections):
                assert found.boxes.device.type == "cpu"
                assert torch.allclose(found.scores, right.scores, atol=1e-3)
            else:
                assert found.scores == pytest.approx(right.scores, abs=1e-3)


def test_predictions_are_a_coco_data_set(concept: Concept, pictures: list[Path], tmp_path: Path) -> None:
    concept.save(tmp_path / "c.safetensors")
    concept.card.score_threshold = 0.5
    arguments = ["predict", str(tmp_path / "c.safetensors"), str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    done = run.invoke(app, [*arguments, "--threshold", "0.05"])
    assert done.exit_code == 0, done.output
    assert "landscape.png  12 found: " in done.output
    content = read_json(tmp_path / "out/predictions.json")
    assert content["info"] == {
        "concept": "red ring-blue star", "row": "red ring-blue star-zero", "base": "toy",
        "base_sha256": concept.card.base.sha256, "score_threshold": 0.05,
    }  # fmt: skip
    coco = COCO(tmp_path / "out/predictions.json")
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == ["red ring", "blue star"]
    found = dict(zip(map(str, pictures), concept.predict(pictures, threshold=0.05)))
    for image in coco.loadImgs(coco.getImgIds()):
        one = found[image["file_name"]]
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        assert (image["height"], image["width"]) == one.size
        assert [a["score"] for a in annotations] == pytest.approx(one.scores.tolist(), abs=1e-5)
        x, y, width, height = annotations[0]["bbox"]
        assert (x, y, x + width, y + height) == pytest.approx(one.boxes[0].tolist(), abs=0.02)
        assert np.array_equal(coco.annToMask(annotations[0]).astype(bool), one.masks[0].numpy())
        assert annotations[0]["area"] == one.masks[0].sum()
        with Image.open(tmp_path / "out" / image["drawn"]) as drawn:
            assert drawn.width == 320
    assert len(coco.loadRes(content["annotations"]).anns) == len(content["annotations"]) == 60
    refused = run.invoke(app, [*arguments, "--threshold", "2"])
    assert refused.exit_code == 2
    refused = run.invoke(app, [*arguments, "--device", "cuda:99"])
    assert "the device `cuda:99` cannot be used here (" in str(refused.exception)


def finished(folder: Path, rows: dict[str, Concept], val: dict[str, float]) -> None:
    """What the stages leave of a concept `spots` with some rows, whose validation mask AP is given; all have the score
    threshold of the last one."""
    threshold = list(rows.values())[-1].card.score_threshold
    plain = [row for row, concept in rows.items() if concept.card.finetune is None]
    runs = [f"  {row}: {{concept: spots, method: {{name: zero_shot}}}}" for row in plain]
    runs += [
        "finetunes:",
        *(f"  {row}: {{concept: spots, from: plain, kind: head}}" for row in rows if row not in plain),
    ]
    (folder / "params.yaml").write_text(
        f"backbones:\n  toy: {{kind: glip, source: {next(iter(rows.values())).card.base.source}}}\n"
        "data:\n  scenes: {kind: scenes, vocabulary: novel}\n"
        "concepts:\n  spots: {task: segmentation, backbone: toy, data: scenes, shots: 2, "
        f"score_threshold: {threshold}}}\nruns:\n" + "\n".join(runs)
    )
    (folder / "dvc.yaml").write_text("")
    for row, concept in rows.items():
        metrics = {"mask_ap": val[row], "box_ap": 0.5}
        update = {"concept": "spots", "row": row, "val": metrics, "score_threshold": threshold}
        out = folder / "searched/spots" / row
        replace(concept, card=concept.card.model_copy(update=update)).save(out / "concept.safetensors")
        write_json(out / "metrics.json", {"val": metrics})
        write_json(out / "cost.json", {"search_seconds": 1.5})
        (out / "curves.csv").write_text("epoch,step,train_loss,val_score,val_mask_ap\n1,4,0.5,,\n2,8,0.4,0.3,0.3\n")
        write_json(folder / f"evaluated/spots/rows/{row}.json", [])
    hashes = {row: file_hash(folder / "searched/spots" / row / "concept.safetensors") for row in rows}
    write_json(folder / "evaluated/spots/concepts.json", hashes)
    metrics = {row: {"val": {"mask_ap": val[row], "box_ap": 0.5}, "test": {"mask_ap": 0.2}} for row in rows}
    write_json(folder / "evaluated/spots/metrics.json", metrics)


def tuned(concept: Concept, toy: Path, weights: Path) -> Concept:
    """A Concept with fine-tuned weights: the temperature of the match of regions with tokens is another."""
    weights.parent.mkdir(parents=True)
    scale = load_file(toy / "model.safetensors")["bbox_head.head.log_scale"].float()
    save_file({"bbox_head.head.log_scale": scale - 0.5}, weights, {WEIGHTS_KEY: json.dumps({})})
    card = {"finetune": {"concept": "spots", "kind": "head", "from": "plain"}, "weights_sha256": file_hash(weights)}
    return replace(concept, card=concept.card.model_copy(update=card), weights_file=weights)


def test_a_fine_tuned_row_goes_from_the_registry_to_boxes(
    concept: Concept, toy: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Register, look up, load from another folder and predict, through cones and through MLflow alone.

    The score threshold is such that boxes are found in one picture only.
    """
    import mlflow
    import pandas as pd

    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights = tmp_path / "project/searched/spots/plain-head" / WEIGHTS_FILE
    rows = {"plain": concept, "plain-head": tuned(concept, toy, weights)}
    plain, head = ([one.scores[0].item() for one in row.predict(pictures)] for row in rows.values())
    assert plain != head
    second, first = sorted(range(len(pictures)), key=head.__getitem__)[-2:]
    rows["plain-head"].card.score_threshold = (head[first] + head[second]) / 2
    expected = rows["plain-head"].predict(pictures)
    assert [len(one) > 0 for one in expected] == [i == first for i in range(len(pictures))]
    finished(Path(), rows, {"plain": 0.25, "plain-head": 0.5})

    done = run.invoke(app, ["register"])
    assert done.exit_code == 0, done.output
    line = next(x for x in done.output.splitlines() if "plain-head" in x)
    assert "mask ap 0.500" in line
    assert "champion" in line
    assert "the best of every version registered: mask ap 0.500" in run.invoke(app, ["lookup", "spots"]).output
    client = mlflow.MlflowClient()
    version = client.get_model_version_by_alias("spots", "champion")
    logged = client.get_run(version.run_id)
    assert version.tags["cones.task"] == "segmentation"
    assert logged.data.params["finetune.kind"] == "head"
    assert logged.data.metrics["curve.val_mask_ap"] == 0.3
    assert [f.path for f in client.list_artifacts(version.run_id, "test")] == ["test/plain-head.json"]

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = cones.load("models:/spots@champion")
    assert all(same(one, right) for one, right in zip(loaded.predict(pictures), expected))
    kept = cache_folder() / "weights" / loaded.card.weights_sha256
    assert [p.name for p in kept.iterdir()] == [WEIGHTS_FILE]
    (kept / WEIGHTS_FILE).write_bytes(b"cut off")
    assert cones.load("models:/spots@champion").weights()[0].keys() == rows["plain-head"].weights()[0].keys()
    monkeypatch.setenv("XDG_CACHE_HOME", str(pictures[0]))
    with pytest.raises(TrackingError, match=r"cannot be made .* set XDG_CACHE_HOME to another folder"):
        cones.load("models:/spots@champion")

    model = mlflow.pyfunc.load_model("models:/spots@champion")
    told = model.predict(pd.DataFrame({"path": list(map(str, pictures))}))
    right = expected[first]
    assert list(told.columns) == [c["name"] for c in model.metadata.get_output_schema().to_dict()]
    assert set(told["path"]) == {str(pictures[first])}
    assert told["label"].tolist() == list(right.labels)
    assert torch.allclose(torch.tensor(told[["x1", "y1", "x2", "y2"]].values).float(), right.boxes, atol=1e-3)
    assert told["mask"].tolist() == list(right.regions)
    assert (told["height"][0], told["width"][0]) == right.size
    none = model.predict(pd.DataFrame({"path": [str(pictures[second])]}))
    assert (len(none), list(none.columns)) == (0, list(told.columns))


def test_joined_concepts_find_the_classes_of_both(toy: Path, pictures: list[Path], tmp_path: Path) -> None:
    ring = concept_of(toy, "red ring", canvas=(64, 32))
    star = concept_of(toy, "blue star", canvas=(32, 64), score_threshold=0.01)
    joined = ring.join(star)
    assert joined.card.classes == ["red ring", "blue star"]
    assert joined.tensors["owner"].tolist() == [
        *ring.tensors["owner"].tolist(), *(o + (o >= 0) for o in star.tensors["owner"].tolist())
    ]  # fmt: skip
    assert (joined.card.canvas, joined.card.score_threshold) == ((64, 64), 0.0)
    assert (joined.card.concept, joined.card.method["name"]) == ("red ring+blue star", "join")
    assert [o["row"] for o in joined.card.method["of"]] == ["red ring-zero", "blue star-zero"]
    for name, one in (("a", ring), ("b", star)):
        one.save(tmp_path / f"{name}.safetensors")
    files = [str(tmp_path / f"{n}.safetensors") for n in ("a", "b", "joined")]
    done = run.invoke(app, ["join", *files[:2], "--out", files[2], "--rename", "blue star=star"])
    assert done.exit_code == 0, done.output
    assert "2 classes: red ring, star" in done.output
    found = cones.load(files[2]).predict(pictures)
    assert {label for one in found for label in one.labels} == {"red ring", "star"}
    again = run.invoke(app, ["join", *files[:2], "--out", files[2]])
    assert "is there already; remove it, or choose another file" in str(again.exception)
    three = cones.load(files[2]).join(concept_of(toy, "cross"))
    assert [o["classes"] for o in three.card.method["of"]] == [["red ring"], ["blue star"], ["cross"]]
    assert three.card.trained_parameters == 24


def test_joined_concepts_share_the_open_base_model(toy: Path, pictures: list[Path], tmp_path: Path, openings) -> None:
    base = shutil.copytree(toy, tmp_path / "toy")
    ring, star, cross = (concept_of(base, name) for name in ("red ring", "blue star", "cross"))
    openings.clear()
    star.predict(pictures[:1])
    joined = ring.join(star).join(cross)
    found = [joined.predict(pictures[:1])[0] for _ in range(2)]
    ring.predict(pictures[:1])
    assert openings == {**ONCE, "filled": 3}  # the image encoder, the head and the mask head
    assert joined.backbone is ring.backbone is star.backbone
    boxes = replace(ring, card=ring.card.model_copy(update={"task": "detection"}))
    assert (boxes.backbone.draws_masks, ring.backbone.draws_masks) == (False, True)
    assert same(*found)


def test_joining_refuses_what_does_not_fit(toy: Path, toy_clip: Path, tmp_path: Path) -> None:
    ring = concept_of(toy, "red ring", "dot")
    with pytest.raises(ConceptError, match="joining takes two Concepts or more, got 1"):
        ring.join()
    with pytest.raises(
        ConceptError, match="both have the class `dot`; give the second another label, as --rename dot="
    ):
        ring.join(concept_of(toy, "dot"))
    with pytest.raises(ConceptError, match="no class `dt` to rename; did you mean `dot`"):
        ring.join(concept_of(toy, "dot"), rename={"dt": "spot"})
    assert ring.join(concept_of(toy, "dot"), rename={"dot": "spot"}).card.classes == ["red ring", "dot", "spot"]
    pooled = replace(ring, tensors=ring.tensors | {"pooled": torch.ones(1, 8)})
    with pytest.raises(ConceptError, match=r"`red ring-dot-zero` has a vector for its whole text \(`pooled`\)"):
        concept_of(toy, "cross").join(pooled)
    with pytest.raises(ConceptError, match="their base model must be the same"):
        ring.join(concept_of(toy_clip, "cat", kind="clip"))
    with pytest.raises(ConceptError, match="their task must be the same, got segmentation and detection"):
        ring.join(concept_of(toy, "cross", task="detection"))
    others = [concept_of(toy, f"{name} cross", f"{name} cup") for name in ("green", "yellow", "brown", "white")]
    with pytest.raises(ConceptError, match=r"have \d+ text tokens \(\d+( \+ \d+){4}\), and toy takes 16; join fewer"):
        ring.join(*others)
    weighted = tuned(concept_of(toy, "cross"), toy, tmp_path / "w" / WEIGHTS_FILE)
    with pytest.raises(ConceptError, match="their fine-tuned weights must be the same, got none and"):
        ring.join(weighted)
    other = replace(weighted, card=weighted.card.model_copy(update={"classes": ["bar"]}))
    weighted.card.row = "first"
    save_joined(weighted.join(other), tmp_path / "out/joined.safetensors")
    assert load(tmp_path / "out/joined.safetensors").weights()[0].keys() == weighted.weights()[0].keys()


def test_joined_clip_concepts_tell_the_classes_of_both_apart(toy_clip: Path, pictures: list[Path]) -> None:
    pets, birds = (concept_of(toy_clip, *names, kind="clip") for names in (("cat", "dog"), ("hen", "owl")))
    # Whatever the order of a Concept's embeddings, each is of the class that owns it.
    turned = {name: tensor.flip(0) for name, tensor in pets.tensors.items()}
    whole = concept_of(toy_clip, "cat", "dog", "hen", "owl", kind="clip")
    joined = replace(pets, tensors=turned).join(birds)
    assert joined.tensors["owner"].tolist() == [1, 0, 2, 3]
    for one, right in zip(joined.predict(pictures), whole.predict(pictures)):
        # The two multiply matrices of other shapes, whose float32 sums are rounded in another order.
        assert one.scores == pytest.approx(right.scores, rel=1e-5)
    assert joined.card.canvas is None
