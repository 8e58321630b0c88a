"""SigLIP: our forwards are transformers' own, methods work on it as on CLIP, and checkpoints load strictly."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch.nn import functional as F

from cones.backbones import open_backbone
from cones.backbones.siglip.settings import SiglipModel as Settings
from cones.backbones.siglip.siglip import Siglip
from cones.common.errors import BackboneError
from cones.common.files import read_json, write_json
from cones.concept.file import WEIGHTS_FILE
from cones.config.params import parse_finetune, parse_method
from cones.features.encoded import Encoded
from cones.finetuning.dual_encoder import finetune_row
from cones.inference.open import load
from cones.interfaces.pictures import Features
from cones.interfaces.protocols import Adapts, DualEncoder, refuse_missing_sites
from cones.interfaces.texts import TextTokens
from cones.methods.searched import Row
from cones.readers.prepare import prepare
from cones.readers.world import WorldData
from cones.search.row import search_row
from cones.synthetic import world as synthetic
from cones.tasks.classification.live import live_pictures
from cones.tasks.classification.settings import ClassificationConcept
from cones.tasks.encode import draw, encode_concept

NAMES = ["star", "a very grainy zorb", "heart"]
PLACES = 16
CONCEPT = ClassificationConcept(task="classification", backbone="toy", data="glyphs", shots=3, views=2)


@pytest.fixture(scope="module")
def toy_siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real SiglipModel of 32-pixel pictures with random weights, its tokenizer and processor, in their own layout."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    folder = tmp_path_factory.mktemp("toy-siglip")
    captions = [synthetic.picture(0, "pretrain", i, 32, synthetic.SHAPES[i % 12]).caption for i in range(60)]
    words = Tokenizer(models.BPE(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.train_from_iterator(captions, trainers.BpeTrainer(vocab_size=300, special_tokens=["<pad>", "</s>", "<unk>"]))
    PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={**small, "vocab_size": words.get_vocab_size(), "max_position_embeddings": PLACES,
                     "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2},
        vision_config={**small, "image_size": 32, "patch_size": 8},
    )  # fmt: skip
    torch.manual_seed(0)
    model = SiglipModel(config)
    model.logit_scale.data.fill_(3.0)
    model.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture
def siglip(toy_siglip: Path) -> Siglip:
    return Siglip(toy_siglip)


@pytest.fixture(scope="module")
def encoded(toy_siglip: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    folder = tmp_path_factory.mktemp("encoded-siglip")
    prepare(WorldData(kind="world", vocabulary="novel", size=32, train=4, val=3, test=2), folder / "prepared")
    drawn = draw(CONCEPT, folder / "prepared")
    return encode_concept("few", CONCEPT, Settings(kind="siglip", source=str(toy_siglip)), drawn, folder / "few")


def test_it_is_a_dual_encoder_with_its_sites(siglip: Siglip) -> None:
    assert isinstance(siglip, DualEncoder)
    assert isinstance(siglip, Adapts)
    assert {name: site.width for name, site in siglip.sites.items()} == {"text_tokens": 32, "text_embeds": 32}
    with pytest.raises(BackboneError, match=r"has no\s+site for them; it takes text_tokens, text_embeds"):
        refuse_missing_sites({"visual_tokens"}, siglip)


@pytest.mark.parametrize(
    ("slot", "sentence"),
    [("before", "a photo of {}"), ("after", "{} a photo of"), ("around", "a {} photo of")],
)
def test_vectors_of_words_give_what_the_words_give(siglip: Siglip, slot: str, sentence: str) -> None:
    """Padded to all its places and pooled at the last of them, with no mask, as it was trained."""
    vectors = siglip.word_vectors("a photo of")
    count = len(siglip.tokenizer("a photo of", add_special_tokens=False).input_ids)
    assert vectors.shape == (count, 32)
    if slot == "around" and count != 3:
        vectors = torch.cat([siglip.word_vectors("a"), siglip.word_vectors("photo of")])
        before = len(siglip.word_vectors("a"))
        if before != len(vectors) // 2:
            pytest.skip("these words have other numbers of tokens")
    ours = siglip.embed_text(NAMES, TextTokens(vectors, slot)).embeds[0]
    theirs = siglip.model.get_text_features(input_ids=_ids(siglip, [sentence.format(n) for n in NAMES])).pooler_output
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def _ids(siglip: Siglip, sentences: list[str]) -> torch.Tensor:
    rows = [[*siglip.tokenizer(s, add_special_tokens=False).input_ids, 1] for s in sentences]
    return torch.tensor([row + [0] * (PLACES - len(row)) for row in rows])


def test_names_are_said_as_it_was_trained(siglip: Siglip) -> None:
    """In small letters and without punctuation; each name of unit length."""
    ours = siglip.embed_text(["A  Red, Star!"], templates=("a photo of {}.",)).embeds[0]
    theirs = siglip.model.get_text_features(input_ids=_ids(siglip, ["a photo of a red star"])).pooler_output
    torch.testing.assert_close(ours, F.normalize(theirs, dim=-1), atol=1e-5, rtol=1e-4)


def test_a_vector_for_each_image(siglip: Siglip) -> None:
    shared = torch.randn(4, 32)
    one = siglip.embed_text(NAMES, TextTokens(shared)).embeds
    by_image = siglip.embed_text(NAMES, TextTokens(torch.stack([shared, 2 * shared])[:, None])).embeds
    assert by_image.shape == (2, 3, 32)
    torch.testing.assert_close(by_image[:1], one, atol=1e-5, rtol=1e-4)


def test_probabilities_are_those_of_the_whole_model(siglip: Siglip) -> None:
    """Its bias is one number, so that it cancels where a picture shows one class."""
    picture = Image.new("RGB", (40, 20), (200, 30, 90))
    pixels, ids = siglip.pixels([picture]), _ids(siglip, ["a photo of star", "a photo of heart"])
    whole = siglip.model(input_ids=ids, pixel_values=pixels).logits_per_image
    text = siglip.embed_text(["star", "heart"], templates=("a photo of {}",))
    features = Features(dict(siglip.encode(pixels)), torch.zeros(1, dtype=torch.long))
    assert torch.allclose(siglip.predict(features, text).scores, whole.softmax(-1), atol=1e-5)


def test_too_long_a_name_is_refused(siglip: Siglip) -> None:
    with pytest.raises(BackboneError, match=r"is \d+ tokens; this text encoder takes 15: shorten it"):
        siglip.embed_text(["star " * 20])
    with pytest.raises(BackboneError, match="star and 15 vectors"):
        siglip.embed_text(["star"], TextTokens(torch.zeros(15, 32)))


@pytest.mark.parametrize("name", ["zero_shot", "coop", "cones", "taskres", "linear_probe", "tip_adapter"])
def test_methods_of_dual_encoders_work_on_it(
    name: str, encoded: Encoded, accelerator: Accelerator, class_folders: Path, tmp_path: Path
) -> None:
    quick = {"coop": {"n_ctx": 2, "epochs": 1}, "cones": {"epochs": 2}, "taskres": {"epochs": 2}}.get(name, {})
    found = search_row("row", Row(concept="few", method=parse_method({"name": name, **quick})), encoded, accelerator)
    found.concept.save(tmp_path / "concept.safetensors")
    (told,) = load(tmp_path / "concept.safetensors").predict([next(class_folders.rglob("*.png"))])
    assert sum(told.scores.values()) == pytest.approx(1, abs=1e-4)


def test_it_is_fine_tuned(encoded: Encoded, accelerator: Accelerator, tmp_path: Path) -> None:
    method = parse_method({"name": "zero_shot"})
    start = search_row("row", Row(concept="few", method=method), encoded, accelerator).concept
    data = encoded.folder.parent / "prepared"
    for kind, more in (("lora", {"rank": 2}), ("full", {})):
        settings = parse_finetune(
            {"concept": "few", "from": "row", "kind": kind, "steps": 2, "batch_size": 4, "lr": 1e-3, **more}
        )
        tuned = finetune_row(
            "tuned", settings, start, encoded, accelerator, data, live=lambda *of: live_pictures(CONCEPT, data, *of)
        )
        (tmp_path / WEIGHTS_FILE).write_bytes(tuned.weights)
        tuned.concept.save(tmp_path / "concept.safetensors")
        assert load(tmp_path / "concept.safetensors").card.finetune["kind"] == kind
        if kind == "lora":
            assert tuned.cost["trained_parameters"] == 2 * 2 * 3 * 2 * (32 + 32)


@pytest.mark.parametrize(
    ("vocabulary", "numbers"), [(32_000, 203_155_970), (256_000, 375_187_970)], ids=["siglip", "siglip2"]
)
def test_base_models_have_the_published_names_and_shapes(vocabulary: int, numbers: int) -> None:
    """At full size on the meta device: the layouts of google/siglip-base-patch16-224 and google/siglip2-..."""
    from transformers import SiglipConfig, SiglipModel

    with torch.device("meta"):
        model = SiglipModel(SiglipConfig(text_config={"vocab_size": vocabulary}))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert sum(p.numel() for p in model.parameters()) == numbers
    assert shapes["text_model.embeddings.token_embedding.weight"] == (vocabulary, 768)
    assert shapes["text_model.embeddings.position_embedding.weight"] == (64, 768)
    assert shapes["text_model.head.weight"] == (768, 768)
    assert shapes["vision_model.embeddings.position_embedding.weight"] == (196, 768)
    assert shapes["vision_model.head.attention.in_proj_weight"] == (2304, 768)
    assert shapes["logit_bias"] == (1,)


def test_a_model_of_another_kind_is_refused(toy_siglip: Path, toy_clip: Path, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="holds a `clip` model, not a `siglip` one"):
        open_backbone("siglip", toy_clip)
    config = read_json(toy_siglip / "config.json")
    write_json(tmp_path / "config.json", {**config, "model_type": "siglip2"})
    with pytest.raises(BackboneError, match="holds a `siglip2` model, not a `siglip` one"):
        open_backbone("siglip", tmp_path)
