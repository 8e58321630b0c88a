"""The methods on CLIP that drop the text encoder, beside ConES: TaskRes, LP++, Tip-Adapter and the linear probe."""

import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from cones.common.errors import ConceptError, ParamsError
from cones.concept.file import Concept
from cones.config.params import parse_method, parse_params
from cones.features.encoded import Encoded
from cones.inference.join import join
from cones.inference.open import load
from cones.interfaces.texts import KeyedPictures, TextEmbeds
from cones.methods.fitted import all_views, features_of, mean_views
from cones.methods.linear_probe.module import LinearProbe
from cones.methods.lp_plus_plus.module import LpPlusPlus
from cones.methods.searched import Row
from cones.methods.tip_adapter.module import ALPHAS, BETAS, TipAdapter, steps_to
from cones.search.outcome import FoundRow
from cones.search.row import search_row

METHODS = ("taskres", "linear_probe", "lp_plus_plus", "tip_adapter", "tip_adapter_f")
QUICK = {"taskres": {"epochs": 4}, "tip_adapter_f": {"epochs": 4}}


def found(name: str, encoded: Encoded, accelerator: Accelerator, **settings: object) -> FoundRow:
    method = parse_method({"name": name, **QUICK.get(name, {}), **settings})
    return search_row(f"few-{name}", Row(concept="few", method=method), encoded, accelerator)


@pytest.fixture(scope="module", params=METHODS)
def row(request: pytest.FixtureRequest, encoded: Encoded, accelerator: Accelerator) -> FoundRow:
    return found(request.param, encoded, accelerator)


def test_trained_numbers(row: FoundRow, encoded: Encoded) -> None:
    classes, pictures, width = 10, len(encoded.train), 24
    by_hand = {
        "taskres": classes * width,
        "linear_probe": classes * width + classes,
        "lp_plus_plus": classes * width + classes,
        "tip_adapter": 0,
        "tip_adapter_f": pictures * width,
    }
    assert row.cost["trained_parameters"] == by_hand[row.concept.card.method["name"]]


def test_no_text_encoder_runs(row: FoundRow) -> None:
    assert row.cost["text_encoder_calls"] == 0


def test_a_saved_one_predicts_what_validation_saw(row: FoundRow, encoded: Encoded, tmp_path: Path) -> None:
    row.concept.save(tmp_path / "concept.safetensors")
    text = Concept.load(tmp_path / "concept.safetensors").text
    backbone = encoded.backbone("cpu")
    scores = backbone.predict(next(encoded.val.batches(len(encoded.val))), text).scores
    right = float((scores.argmax(1) == encoded.val.labels).float().mean())
    assert right == pytest.approx(row.metrics["accuracy"], abs=1e-6)


def test_it_predicts_a_picture(row: FoundRow, encoded: Encoded, class_folders: Path, tmp_path: Path) -> None:
    row.concept.save(tmp_path / "concept.safetensors")
    opened = load(tmp_path / "concept.safetensors")
    picture = next(class_folders.rglob("*.png"))
    (told,) = opened.predict([picture])
    backbone = encoded.backbone("cpu")
    from PIL import Image

    image = backbone.encode(backbone.pixels([Image.open(picture)]))["image"]
    logits = backbone.logits(_features(image), row.concept.text)[0]
    assert told.scores[opened.card.classes[3]] == pytest.approx(float(logits.softmax(0)[3]), abs=1e-5)


def _features(image: torch.Tensor):
    from cones.interfaces.pictures import Features

    return Features({"image": image.clone()}, torch.zeros(len(image), dtype=torch.long))


def test_a_fit_is_better_on_what_it_saw_than_the_names(encoded: Encoded, accelerator: Accelerator) -> None:
    backbone = encoded.backbone("cpu")

    def right(text: TextEmbeds) -> float:
        whole = next(encoded.train.batches(len(encoded.train)))
        return float((backbone.logits(whole, text).argmax(1) == encoded.train.labels).float().mean())

    names = right(encoded.text)
    for name in ("linear_probe", "lp_plus_plus"):
        assert right(found(name, encoded, accelerator).concept.text) > names, name


def test_the_same_seed_finds_the_same(encoded: Encoded, accelerator: Accelerator) -> None:
    for name in METHODS:
        one, two = (found(name, encoded, accelerator).concept.tensors for _ in range(2))
        assert all(torch.equal(one[key], two[key]) for key in one), name


def test_pictures_add_to_the_logits_of_their_classes() -> None:
    torch.manual_seed(0)
    keys, image = F.normalize(torch.randn(7, 5), dim=-1), F.normalize(torch.randn(3, 5), dim=-1)
    labels, alpha, beta = torch.tensor([0, 2, 2, 1, 0, 2, 2]), 1.5, 4.0
    told = KeyedPictures(keys, labels, torch.tensor([alpha, beta])).logits(image, 4)
    for b in range(3):
        for c in range(4):
            near = (math.exp(-beta * (1 - float(image[b] @ k))) for k, label in zip(keys, labels) if label == c)
            assert float(told[b, c]) == pytest.approx(alpha * sum(near), rel=1e-5, abs=1e-7)


def test_the_probe_is_scikit_learns_at_the_best_strength(encoded: Encoded) -> None:
    probe = LinearProbe(encoded.text, refinements=3, iterations=1000)
    probe.fit(encoded.train, encoded.val)
    (x, y), (held, truth) = all_views(encoded.train), features_of(encoded.val)
    assert len(x) == 2 * len(encoded.train)
    powers = {6.0, 4.0, 2.0, 0.0, -2.0, -4.0, -6.0}
    best = 0.0
    for power in powers:
        one = LogisticRegression(C=10**power, max_iter=1000).fit(x.numpy(), y.numpy())
        best = max(best, float((one.predict(held.numpy()) == truth.numpy()).mean()))
    right = ((held @ probe.weight.T + probe.bias).argmax(1) == truth).float().mean()
    assert float(right) >= best


def test_a_probe_of_two_classes(encoded: Encoded) -> None:
    """scikit-learn has one row of weights for them."""
    torch.manual_seed(0)
    text = TextEmbeds.one_per_class(torch.eye(2, 24))
    probe = LinearProbe(text, refinements=2, iterations=100)
    two = _Two()
    probe.fit(two, two)
    x, y = features_of(two)
    assert ((x @ probe.weight.T + probe.bias).argmax(1) == y).all()
    assert torch.allclose(probe.weight[0], -probe.weight[1])


class _Two:
    """Two classes of pictures that a line divides."""

    views = 1

    def __init__(self) -> None:
        self.labels = torch.arange(20) % 2
        self.image = torch.randn(20, 24) * 0.1
        self.image[:, 0] += 2.0 * self.labels - 1

        self.truths, self.sizes = [], []

    def __len__(self) -> int:
        return 20

    def batch(self, indices, views=None):
        return _features(self.image[indices])

    def batches(self, size, share=None):
        yield self.batch(torch.arange(20))

    def sample(self, size, generator, share=None):
        return self.batch(torch.randperm(20, generator=generator)[:size])


def test_lp_plus_plus_descends_from_its_start(encoded: Encoded) -> None:
    def loss(steps: int) -> float:
        module = LpPlusPlus(encoded.text, steps)
        module.fit(encoded.train, encoded.val)
        x, y = all_views(encoded.train)
        text = module([]).text_embeds
        assert text is not None
        return float(F.cross_entropy(x @ text.embeds[0].T + text.bias, y))

    assert loss(300) < loss(20) < loss(1)


def test_lp_plus_plus_starts_as_published(encoded: Encoded) -> None:
    """Its released code: each class's pictures added up, and 250 times the mean similarity with the own text."""
    module = LpPlusPlus(encoded.text, 0)
    module.fit(encoded.train, encoded.val)
    x, y = all_views(encoded.train)
    unit = F.normalize(encoded.text.embeds[0], dim=-1)
    for c in range(10):
        assert torch.allclose(module.prototypes[c], x[y == c].sum(0) / encoded.train.views, atol=1e-5)
    similar = [float((x[y == c] @ unit[c]).mean()) for c in range(10)]
    assert module.multipliers.tolist() == pytest.approx([250 * sum(similar) / 10] * 10, rel=1e-4)


def test_alpha_and_beta_are_the_best_on_validation(encoded: Encoded) -> None:
    keys, labels = mean_views(encoded.train)
    scale = encoded.backbone("cpu").logit_scale
    adapter = TipAdapter(encoded.text, keys, labels, (1.0, 5.5), (3.0, 7.0), scale, trained=False)
    adapter.fit(encoded.train, encoded.val)
    held, truth = features_of(encoded.val)
    unit = F.normalize(encoded.text.embeds[0], dim=-1)

    def score(alpha: float, beta: float) -> float:
        told = KeyedPictures(keys, labels, torch.tensor([alpha, beta])).logits(held, 10)
        return float(((scale * held @ unit.T + told).argmax(1) == truth).float().mean())

    tried = [score(float(a), float(b)) for a in steps_to(3.0, ALPHAS) for b in steps_to(7.0, BETAS)[::10]]
    assert score(*adapter.scale.tolist()) >= max(tried)


def test_keys_of_a_picture_are_the_mean_of_its_views(encoded: Encoded) -> None:
    keys, _ = mean_views(encoded.train)
    one = torch.stack([features_of(encoded.train, view)[0][4] for view in range(encoded.train.views)])
    assert torch.allclose(keys[4], F.normalize(one.mean(0), dim=-1), atol=1e-6)


@pytest.mark.parametrize("name", ["linear_probe", "tip_adapter"])
def test_joining_is_refused_with_the_reason(
    name: str, encoded: Encoded, accelerator: Accelerator, tmp_path: Path
) -> None:
    opened = []
    for at, method in enumerate((name, "taskres")):
        found(method, encoded, accelerator).concept.save(tmp_path / f"{at}.safetensors")
        opened.append(load(tmp_path / f"{at}.safetensors"))
    with pytest.raises(ConceptError, match=f"was found by {name}, which scores its classes against each other alone"):
        join(opened, {label: f"other {label}" for label in opened[1].card.classes})


WRONG = {
    "few labels": ({"key_labels": torch.zeros(3, dtype=torch.long)}, r"must be \(N, 24\), \(N,\) and \(2,\)"),
    "narrow keys": ({"keys": torch.zeros(30, 23)}, r"must be \(N, 24\)"),
    "no scale": ({"key_scale": None}, "it must have all or none"),
    "another class": ({"key_labels": torch.full((30,), 10)}, "keys of other classes than the 10"),
    "fractions": ({"key_labels": torch.zeros(30)}, "key_labels as torch.float32"),
    "a bias too": ({"bias": torch.zeros(10)}, "without keys"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_is_not_whole_is_refused(
    case: str, encoded: Encoded, accelerator: Accelerator, tmp_path: Path
) -> None:
    concept = found("tip_adapter", encoded, accelerator).concept
    change, words = WRONG[case]
    changed = {**concept.tensors, **change}
    Concept(concept.card, {k: t for k, t in changed.items() if t is not None}).save(tmp_path / "c.safetensors")
    with pytest.raises(ConceptError, match=words):
        Concept.load(tmp_path / "c.safetensors")


def test_a_bias_of_another_length_is_refused(encoded: Encoded, accelerator: Accelerator, tmp_path: Path) -> None:
    concept = found("linear_probe", encoded, accelerator).concept
    Concept(concept.card, {**concept.tensors, "bias": torch.zeros(9)}).save(tmp_path / "c.safetensors")
    with pytest.raises(ConceptError, match=r"has a bias \(9,\); it must be \(10,\)"):
        Concept.load(tmp_path / "c.safetensors")


@pytest.mark.parametrize("name", METHODS)
def test_they_are_for_dual_encoders(name: str) -> None:
    params = {
        "backbones": {"glip": {"kind": "glip", "source": "models/backbones/glip-tiny"}},
        "data": {"scenes": {"kind": "scenes", "source": "cones/synthetic", "vocabulary": "novel"}},
        "concepts": {"found": {"task": "detection", "backbone": "glip", "data": "scenes", "shots": 2}},
        "runs": {"found-it": {"concept": "found", "method": {"name": name}}},
        "finetunes": {},
    }
    with pytest.raises(ParamsError, match=f"the method `{name}` is not defined on a `glip` backbone"):
        parse_params(params)
