"""MetaCLIP 2: CLIP's forwards on its model and its vocabulary."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from cones.backbones.metaclip_2.metaclip_2 import MetaClip2
from cones.backbones.metaclip_2.settings import MetaClip2Model as Settings
from cones.common.errors import BackboneError
from cones.config.params import parse_method
from cones.inference.open import load
from cones.interfaces.protocols import Adapts, DualEncoder
from cones.interfaces.texts import TextTokens
from cones.methods.searched import Row
from cones.readers.prepare import prepare
from cones.readers.world import WorldData
from cones.search.row import search_row
from cones.synthetic import world as synthetic
from cones.tasks.classification.settings import ClassificationConcept
from cones.tasks.encode import draw, encode_concept

NAMES = ["star", "a very grainy zorb", "heart"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real MetaClip2Model of 32-pixel pictures with random weights, its tokenizer and processor."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import MetaClip2Config, MetaClip2Model, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("toy-metaclip")
    captions = [synthetic.picture(0, "pretrain", i, 32, synthetic.SHAPES[i % 12]).caption + "." for i in range(60)]
    words = Tokenizer(models.BPE(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    words.train_from_iterator(captions, trainers.BpeTrainer(vocab_size=300, special_tokens=special))
    words.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **named).save_pretrained(folder)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    config = MetaClip2Config(
        text_config={**small, **ends, "vocab_size": words.get_vocab_size(), "projection_dim": 24},
        vision_config={**small, "image_size": 32, "patch_size": 8, "projection_dim": 24},
        projection_dim=24,
    )
    torch.manual_seed(0)
    MetaClip2Model(config).save_pretrained(folder)
    sides = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=sides).save_pretrained(folder)
    return folder


@pytest.fixture
def model(toy: Path) -> MetaClip2:
    return MetaClip2(toy)


@pytest.mark.parametrize(("slot", "sentence"), [("before", "a photo of {}."), ("after", "{} a photo of.")])
def test_vectors_of_words_give_what_the_words_give(model: MetaClip2, slot: str, sentence: str) -> None:
    ours = model.embed_text(NAMES, TextTokens(model.word_vectors("a photo of"), slot)).embeds[0]
    ids = model.tokenizer([sentence.format(name) for name in NAMES], padding=True, return_tensors="pt")
    theirs = model.model.get_text_features(ids.input_ids, ids.attention_mask).pooler_output
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_visual_tokens_enter_its_image_encoder(model: MetaClip2) -> None:
    assert isinstance(model, DualEncoder)
    assert isinstance(model, Adapts)
    pixels = torch.randn(2, 3, 32, 32)
    plain = model.encode(pixels)["image"]
    tokens = torch.randn(2, 3, 32, requires_grad=True)
    prompted = model.encode(pixels, tokens)["image"]
    assert not torch.allclose(plain, prompted, atol=1e-3)
    prompted.sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.any(-1).all()


@pytest.mark.parametrize("name", ["zero_shot", "coop", "cones"])
def test_methods_of_dual_encoders_work_on_it(
    name: str, toy: Path, accelerator: Accelerator, class_folders: Path, tmp_path: Path
) -> None:
    concept = ClassificationConcept(task="classification", backbone="toy", data="glyphs", shots=2, views=2)
    prepare(WorldData(kind="world", vocabulary="novel", size=32, train=3, val=2, test=2), tmp_path / "prepared")
    drawn = draw(concept, tmp_path / "prepared")
    encoded = encode_concept("few", concept, Settings(kind="metaclip_2", source=str(toy)), drawn, tmp_path / "few")
    quick = {"coop": {"n_ctx": 2, "epochs": 1}, "cones": {"epochs": 2}}.get(name, {})
    found = search_row("row", Row(concept="few", method=parse_method({"name": name, **quick})), encoded, accelerator)
    found.concept.save(tmp_path / "concept.safetensors")
    (told,) = load(tmp_path / "concept.safetensors").predict([next(class_folders.rglob("*.png"))])
    assert sum(told.scores.values()) == pytest.approx(1, abs=1e-4)


def test_a_clip_is_another_kind(toy_clip: Path) -> None:
    with pytest.raises(BackboneError, match="holds a `clip` model, not a `metaclip_2` one"):
        MetaClip2(toy_clip)


def test_the_published_layout() -> None:
    """facebook/metaclip-2-worldwide-huge-quickgelu on the meta device: ViT-H/14, 24 layers of text, XLM-V's words."""
    from transformers import MetaClip2Config, MetaClip2Model

    text = {"hidden_size": 1024, "num_hidden_layers": 24, "vocab_size": 901_629}
    vision = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "patch_size": 14}
    with torch.device("meta"):
        model = MetaClip2Model(MetaClip2Config(text_config=text, vision_config=vision, projection_dim=1024))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["text_model.embeddings.token_embedding.weight"] == (901_629, 1024)
    assert shapes["vision_model.embeddings.position_embedding.weight"] == (257, 1280)
    assert shapes["text_projection.weight"] == (1024, 1024)
    assert shapes["visual_projection.weight"] == (1024, 1280)
    assert "vision_model.pre_layrnorm.weight" in shapes
