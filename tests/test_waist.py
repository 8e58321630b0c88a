"""The narrow waist: prompts for the image encoder, pictures that are encoded anew, and texts of single pictures."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cones.backbones import open_backbone
from cones.backbones.clip.clip import Clip
from cones.backbones.tuned import with_tuned
from cones.common.errors import BackboneError, ConceptError, DataError, SearchError
from cones.concept.file import Concept
from cones.config.params import Params, parse_params
from cones.config.plan import compile_plan
from cones.data.prepared import Split
from cones.features.encoded import Encoded, encoded_pictures
from cones.inference.open import in_use
from cones.interfaces.pictures import Pictures
from cones.interfaces.protocols import Backbone
from cones.interfaces.texts import Prompts, TextEmbeds
from cones.methods.searched import Method, Row, Searched
from cones.methods.start import Start
from cones.results.evaluate import evaluate_rows
from cones.search.epochs import search
from cones.search.row import search_row
from cones.tasks.classification.live import live_pictures
from cones.tasks.classification.settings import ClassificationConcept

CONCEPT = ClassificationConcept(task="classification", backbone="toy", data="glyphs", shots=3, views=2)


class Tokens(nn.Module):
    """Visual tokens are searched, and the text stays."""

    def __init__(self, text: TextEmbeds, tokens: Tensor) -> None:
        super().__init__()
        self.text, self.tokens = text, nn.Parameter(tokens)

    def forward(self, names, features=None, generator=None) -> Prompts:
        return Prompts(text_embeds=self.text, visual_tokens=self.tokens)


class Visual(Searched):
    """A toy of VPT."""

    families: ClassVar[frozenset[str]] = frozenset({"dual_encoder"})
    enters_image_encoder: ClassVar[bool] = True
    name: Literal["visual"] = "visual"
    layers: int = 2
    built: ClassVar[list[Tokens]] = []

    def build(self, backbone: Backbone, start: Start) -> nn.Module:
        tokens = torch.randn(self.layers, 3, backbone.sites["visual_tokens"].width, generator=start.generator)
        self.built.append(Tokens(start.text, tokens))
        return self.built[-1]


class Forgetful(Visual):
    enters_image_encoder: ClassVar[bool] = False


class ByPicture(nn.Module):
    """Each picture's text is moved by the picture's own feature, as CoCoOp does."""

    def __init__(self, text: Tensor) -> None:
        super().__init__()
        self.text, self.share = text, nn.Parameter(torch.tensor(0.1))
        self.seen: list[int] = []

    def forward(self, names, features=None, generator=None) -> Prompts:
        self.seen.append(len(features.views))
        moved = self.text + self.share * features.tensors["image"][:, None]
        return Prompts(text_embeds=TextEmbeds.one_per_class(moved))


class Conditional(Visual):
    enters_image_encoder: ClassVar[bool] = False
    reads_pictures: ClassVar[bool] = True


def slow(clip: Clip, pixels: Tensor, tokens: Tensor) -> Tensor:
    """The same with nothing but the weights of the model."""
    weights = {n.removeprefix("vision_model."): t for n, t in clip.model.state_dict().items()}

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    found = []
    for picture in pixels:
        patches = F.conv2d(picture[None], weights["embeddings.patch_embedding.weight"], stride=8).flatten(2)[0].T
        x = torch.cat([weights["embeddings.class_embedding"][None], patches])
        x = norm(x + weights["embeddings.position_embedding.weight"], "pre_layrnorm")
        own = list(x)
        rows = [own[0], *tokens[0], *own[1:]]
        for i in range(2):
            if 0 < i < len(tokens):
                rows[1 : 1 + tokens.shape[1]] = list(tokens[i])
            x, at = torch.stack(rows), f"encoder.layers.{i}"
            h = norm(x, f"{at}.layer_norm1")
            q, k, v = (linear(h, f"{at}.self_attn.{n}_proj").view(-1, 2, 16).transpose(0, 1) for n in "qkv")
            mixed = ((q @ k.transpose(1, 2)) / 4).softmax(-1) @ v
            x = x + linear(mixed.transpose(0, 1).reshape(len(x), 32), f"{at}.self_attn.out_proj")
            h = linear(norm(x, f"{at}.layer_norm2"), f"{at}.mlp.fc1")
            x = x + linear(h * torch.sigmoid(1.702 * h), f"{at}.mlp.fc2")
            rows = list(x)
        found.append(norm(rows[0], "post_layernorm") @ weights["visual_projection.weight"].T)
    return F.normalize(torch.stack(found), dim=-1)


@pytest.fixture(scope="module")
def data(encoded: Encoded) -> Path:
    return encoded.folder.parent / "prepared"


@pytest.fixture
def live(data: Path) -> Callable:
    return partial(live_pictures, CONCEPT, data)


def row(encoded: Encoded, accelerator, method: Method, live: Callable | None, **more):
    return search_row("row", Row(concept="few", method=method), encoded, accelerator, live=live, **more)


# In CLIP


@pytest.mark.parametrize("layers", [1, 2])
def test_visual_tokens_give_what_a_slow_forward_gives(clip: Clip, layers: int) -> None:
    torch.manual_seed(0)
    pixels, tokens = torch.randn(3, 3, 32, 32), torch.randn(layers, 4, 32)
    torch.testing.assert_close(clip.encode(pixels, tokens)["image"], slow(clip, pixels, tokens), atol=1e-5, rtol=1e-4)
    none = torch.zeros(layers, 0, 32)
    torch.testing.assert_close(clip.encode(pixels, none)["image"], clip.encode(pixels)["image"].clone())


def test_gradients_reach_all_visual_tokens_and_nothing_else(clip: Clip) -> None:
    tokens = torch.randn(2, 4, 32, requires_grad=True)
    clip.encode(torch.randn(2, 3, 32, 32), tokens)["image"][:, 0].sum().backward()
    assert tokens.grad is not None
    assert (tokens.grad.abs().sum(-1) > 0).all()
    assert all(p.grad is None for p in clip.model.parameters())


@pytest.mark.parametrize("shape", [(1, 2, 31), (3, 2, 32), (0, 2, 32)])
def test_visual_tokens_that_do_not_fit_are_refused(clip: Clip, shape: tuple[int, int, int]) -> None:
    with pytest.raises(BackboneError, match="this image encoder takes them 32 wide, for 1 to 2"):
        clip.encode(torch.zeros(1, 3, 32, 32), torch.zeros(shape))


@pytest.mark.parametrize("kind", ["glip", "sd"])
def test_a_backbone_without_the_site_says_so_and_loads_nothing(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(f"toy_{kind}")
    backbone = open_backbone(kind, folder)
    before = set(vars(backbone))
    with pytest.raises(BackboneError, match=f"gives visual tokens, and a {backbone.family} backbone such as this one"):
        backbone.encode(torch.zeros(1, 3, 64, 64), torch.zeros(1, 2, 96))
    assert set(vars(backbone)) == before


@pytest.mark.parametrize(("kind", "part"), [("clip", "vision_model"), ("glip", "bbox_head"), ("sd", "unet")])
def test_gradients_can_pass_a_model_that_is_first_used_in_inference_mode(
    kind: str, part: str, request: pytest.FixtureRequest
) -> None:
    with torch.inference_mode():  # on another device than its file was read to, as on a GPU
        model = open_backbone(kind, request.getfixturevalue(f"toy_{kind}"), "meta").part(part)
    assert not [name for name, weight in model.named_parameters() if weight.is_inference()]


def test_additions_come_to_the_device_of_their_weight() -> None:
    additions = {"x.weight.lora_A": torch.ones(2, 3), "x.weight.lora_B": torch.ones(4, 2)}
    assert with_tuned({"x.weight": torch.zeros(4, 3, device="meta")}, additions, 1.0)["x.weight"].is_meta
    assert torch.equal(with_tuned({"x.weight": torch.ones(4, 3)}, additions, 0.5)["x.weight"], torch.full((4, 3), 2.0))


# Pictures that are encoded anew


def test_without_tokens_live_pictures_are_those_that_were_kept(encoded: Encoded, live: Callable) -> None:
    backbone = encoded.backbone()
    nothing = torch.zeros(1, 0, 32)
    train, val = live(encoded, backbone, lambda: nothing)
    assert isinstance(train, Pictures)
    assert (len(train), train.views, val.views) == (30, 2, 1)
    places, views = torch.tensor([0, 7, 29]), torch.tensor([1, 0, 1])
    for store, pictures in ((encoded.train, train), (encoded.val, val)):
        kept, now = store.batch(places, views % store.views), pictures.batch(places, views % store.views)
        torch.testing.assert_close(now.tensors["image"], kept.tensors["image"], atol=1e-3, rtol=0)
        assert torch.equal(now.labels, kept.labels)
    drawn = [p.sample(8, torch.Generator().manual_seed(1)) for p in (encoded.train, train)]
    assert torch.equal(drawn[0].labels, drawn[1].labels)
    whole = [torch.cat([f.tensors["image"] for f in p.batches(7)]) for p in (encoded.val, val)]
    torch.testing.assert_close(*whole, atol=2e-3, rtol=0)


def test_each_view_is_read_once(encoded: Encoded, live: Callable, opened_pictures) -> None:
    train, _ = live(encoded, encoded.backbone(), lambda: torch.zeros(1, 1, 32))
    for _ in range(3):
        train.batch(torch.arange(4), torch.tensor([0, 1, 0, 1]))
    assert sum(opened_pictures.values()) == 4


def test_other_pictures_than_those_that_were_encoded_are_refused(encoded: Encoded, data: Path) -> None:
    other = replace(encoded, about={**encoded.about, "split_hash": "0" * 64})
    with pytest.raises(DataError, match="does not hold the pictures that were encoded"):
        encoded_pictures(other, data)


# A method that enters the image encoder


def test_a_visual_method_is_searched(encoded: Encoded, accelerator, live: Callable, monkeypatch) -> None:
    opened: list[Clip] = []
    opening = Encoded.backbone
    monkeypatch.setattr(Encoded, "backbone", lambda self, *how: opened.append(opening(self, *how)) or opened[-1])
    before = encoded.backbone().model.state_dict()
    settings = Visual(epochs=20, batch_size=30, lr=0.1, warmup_epochs=0, patience=None)
    steps: list[Tensor] = []
    found = row(
        encoded, accelerator, settings, live, on_epoch=lambda line: steps.append(settings.built[-1].tokens.data.clone())
    )
    assert all((later != steps[0]).any(-1).all() for later in steps[1:])
    tokens = found.concept.tensors["visual_tokens"]
    assert tokens.shape == (2, 3, 32)
    assert torch.equal(tokens, steps[found.result.steps_to_best])
    assert torch.equal(found.concept.tensors["text_embeds"], encoded.text.embeds[0])
    assert all(torch.equal(t, before[n]) for n, t in opened[-1].model.state_dict().items())
    assert found.cost["trained_parameters"] == 2 * 3 * 32
    assert found.cost["text_encoder_calls"] == 0
    losses = [line["train_loss"] for line in found.result.curves[1:]]
    assert losses[-1] < losses[0]
    assert len({line["val_loss"] for line in found.result.curves}) > 15
    again = row(encoded, accelerator, settings, live)
    assert torch.equal(again.concept.tensors["visual_tokens"], tokens)
    assert again.metrics == found.metrics


def test_parts_of_a_batch_give_the_gradient_of_the_whole(encoded: Encoded, accelerator, live: Callable) -> None:
    how = {"epochs": 1, "batch_size": 8, "lr": 0.05, "warmup_epochs": 0, "optimiser": "sgd"}
    whole, parts = (row(encoded, accelerator, Visual(**how, accumulate=n), live) for n in (1, 3))
    torch.testing.assert_close(
        whole.concept.tensors["visual_tokens"], parts.concept.tensors["visual_tokens"], atol=1e-5, rtol=1e-4
    )


def test_its_concept_sees_pictures_by_its_tokens(
    encoded: Encoded, accelerator, live: Callable, data: Path, tmp_path: Path
) -> None:
    found = row(encoded, accelerator, Visual(epochs=1, lr=0.5, warmup_epochs=0), live)
    path = tmp_path / "visual.safetensors"
    found.concept.save(path)
    concept = Concept.load(path)
    plain = Concept(concept.card, {n: t for n, t in concept.tensors.items() if n != "visual_tokens"})
    plain.save(tmp_path / "plain.safetensors")
    paths = {"visual": path, "plain": tmp_path / "plain.safetensors"}
    on_val = evaluate_rows(paths, data / "val", tmp_path / "cache")
    assert on_val["visual"].metrics == pytest.approx(found.metrics, abs=1e-4)
    assert on_val["plain"].metrics["loss"] != on_val["visual"].metrics["loss"]
    val = Split.open(data / "val")
    used = in_use(concept, device="cpu")
    scores = torch.tensor([list(p.scores.values()) for p in used.predict([val.picture(i) for i in range(9)])])
    torch.testing.assert_close(scores, on_val["visual"].predictions[0].scores[:9], atol=1e-3, rtol=0)
    with pytest.raises(ConceptError, match="`row` sees pictures by visual tokens of its own"):
        used.join(in_use(plain, device="cpu"))
    wide = Concept(concept.card, concept.tensors | {"visual_tokens": torch.zeros(1, 2, 31)})
    with pytest.raises(ConceptError, match="`row` has visual tokens 31 wide, for 1 layers"):
        in_use(wide, device="cpu").predict([val.picture(0)])


@pytest.mark.parametrize("kind", ["glip", "sd"])
def test_it_is_refused_by_name_on_other_backbones(
    kind: str, encoded: Encoded, accelerator, live: Callable, request: pytest.FixtureRequest, monkeypatch
) -> None:
    backbone = open_backbone(kind, request.getfixturevalue(f"toy_{kind}"))
    before = set(vars(backbone))
    monkeypatch.setattr(Encoded, "backbone", lambda self, *how: backbone)
    with pytest.raises(BackboneError, match=f"the method `visual` gives visual tokens, and a {backbone.family}"):
        row(encoded, accelerator, Visual(), live)
    assert set(vars(backbone)) == before


def test_what_it_says_of_itself_must_be_so(encoded: Encoded, accelerator, live: Callable) -> None:
    with pytest.raises(SearchError, match="gives visual tokens, and its `enters_image_encoder` says otherwise"):
        row(encoded, accelerator, Forgetful(), live)
    with pytest.raises(SearchError, match="`visual` enters the image encoder, so that it needs the pictures"):
        row(encoded, accelerator, Visual(), None)


def test_its_plan_has_the_pictures_and_the_code_that_reads_them() -> None:
    text = {
        "backbones": {"toy": {"kind": "clip", "source": "nowhere"}},
        "data": {"glyphs": {"kind": "folder", "source": "nowhere"}},
        "concepts": {"few": {"task": "classification", "backbone": "toy", "data": "glyphs", "shots": 3}},
        "runs": {name: {"concept": "few", "method": {"name": "cones"}} for name in ("kept", "anew")},
    }
    params: Params = parse_params(text)
    runs = params.runs | {"anew": Row(concept="few", method=Visual())}
    plans = compile_plan(params.model_copy(update={"runs": runs}))
    kept, anew = plans["search", "kept"], plans["search", "anew"]
    live = {"cones/features/crops.py", "cones/tasks/classification/live.py", "cones/features/views.py"}
    assert live <= set(anew.code)
    assert not live & set(kept.code)
    assert "pictures" not in kept.settings
    assert anew.part("pictures", ClassificationConcept).min_crop == 0.5


# A text for each picture


def test_texts_of_single_pictures_go_through_the_loop(encoded: Encoded, accelerator, monkeypatch) -> None:
    from cones.tasks.classification.measure import MEASURES

    monkeypatch.setitem(MEASURES, "classification", replace(MEASURES["classification"], batch=7))
    backbone, names = encoded.backbone(), encoded.about["names"]
    method = ByPicture(encoded.text.embeds)
    settings = Conditional(epochs=2, batch_size=8, lr=0.05, warmup_epochs=0, patience=None)
    shares: list[float] = []
    how = {"on_epoch": lambda line: shares.append(float(method.share))}
    found = search(method, backbone, names, encoded.train, encoded.val, settings, 0, accelerator, **how)
    assert len(set(shares)) == 3
    validation = [min(7, len(encoded.val) - i) for i in range(0, len(encoded.val), 7)]
    assert method.seen[: len(validation)] == validation
    assert method.seen.count(8) == 2 * 3
    features = next(encoded.val.batches(len(encoded.val)))
    scores = backbone.predict(features, method(names, features).text_embeds).scores
    one_by_one = [backbone.predict(f, method(names, f).text_embeds).scores for f in encoded.val.batches(1)]
    torch.testing.assert_close(scores, torch.cat(one_by_one))
    picked = scores.gather(1, encoded.val.labels[:, None])
    assert found.curves[found.steps_to_best // 4]["val_loss"] == pytest.approx(float(-picked.log().mean()), rel=1e-4)


def test_no_concept_can_hold_them(encoded: Encoded, accelerator) -> None:
    with pytest.raises(
        SearchError, match="gives each picture a text of its own, which no Concept can hold: its module has no"
    ):
        row(encoded, accelerator, Conditional(), None)
