"""BiomedCLIP in open_clip's layout: a BERT of transformers (`HFTextEncoder`) and a ViT of timm (`TimmModel`)."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from cones.backbones.open_clip.layout import Layout, Preprocess, Size
from cones.common.errors import BackboneError
from cones.common.settings import Strict

NAMED = {"model_cfg.text_cfg.hf_model_name", "model_cfg.vision_cfg.timm_model_name"}
"""Settings by which it is told from an OpenCLIP."""
TEXT, VISION = "text.transformer", "visual.trunk"
HEAD_WIDTH = 64
"""Of both encoders: of BERT-base, and of timm's `vit_base_patch16_224`. The other sizes are those of the weights."""


class Vision(Strict):
    timm_model_name: Literal["vit_base_patch16_224"]
    timm_pool: Literal["", "token"]
    """Empty: as this ViT has it, which is [CLS]."""
    timm_proj: Literal["linear"]
    image_size: Size = 224
    timm_model_pretrained: bool = False
    """Of training alone."""


class Text(Strict):
    hf_model_name: Literal[
        "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
        "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext",
        "microsoft/BiomedNLP-PubMedBERT-base-uncased-abstract",
        "microsoft/BiomedNLP-PubMedBERT-base-uncased-abstract-fulltext",
    ]
    hf_tokenizer_name: str
    """That in the folder is used."""
    hf_proj_type: Literal["mlp"]
    hf_pooler_type: Literal["cls_last_hidden_state_pooler"]
    context_length: Size = 77


class Model(Strict):
    embed_dim: Size
    vision_cfg: Vision
    text_cfg: Text


class Settings(Strict):
    model_cfg: Model
    preprocess_cfg: Preprocess = Preprocess()


def _config(settings: Settings, state: Mapping[str, Tensor]) -> dict[str, Any]:
    words, places = (_shape(state, f"{TEXT}.embeddings.{part}_embeddings.weight") for part in ("word", "position"))
    patches = _shape(state, f"{VISION}.patch_embed.proj.weight", 4)
    return {
        "model_type": "biomedclip",
        "projection_dim": settings.model_cfg.embed_dim,
        "context_length": settings.model_cfg.text_cfg.context_length,
        "text_config": {
            "model_type": "bert",
            "hidden_size": words[1],
            "intermediate_size": _shape(state, f"{TEXT}.encoder.layer.0.intermediate.dense.weight")[0],
            "num_hidden_layers": _layers(state, f"{TEXT}.encoder.layer."),
            "num_attention_heads": words[1] // HEAD_WIDTH,
            "max_position_embeddings": places[0],
            "vocab_size": words[0],
            "pad_token_id": 0,
        },
        "vision_config": {
            "model_type": "vit",
            "hidden_size": patches[0],
            "intermediate_size": _shape(state, f"{VISION}.blocks.0.mlp.fc1.weight")[0],
            "num_hidden_layers": _layers(state, f"{VISION}.blocks."),
            "num_attention_heads": patches[0] // HEAD_WIDTH,
            "image_size": settings.model_cfg.vision_cfg.image_size,
            "patch_size": patches[3],
            "layer_norm_eps": 1e-6,  # timm's; transformers' own is 1e-12
        },
    }


def _shape(state: Mapping[str, Tensor], name: str, axes: int = 2) -> tuple[int, ...]:
    if name not in state or state[name].ndim != axes:
        raise BackboneError(f"the weights lack {name}, a tensor of {axes} axes, by which their sizes are known")
    return tuple(state[name].shape)


def _layers(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({name[len(prefix) :].partition(".")[0] for name in state if name.startswith(prefix)})


def _build(config: Mapping[str, Any]) -> nn.Module:
    from cones.backbones.biomedclip.model import BiomedClipModel

    return BiomedClipModel(BiomedClipModel.config_class(**{k: v for k, v in config.items() if k != "model_type"}))


LAYOUT = Layout(
    settings=Settings,
    tokenizer="BertTokenizer",
    tokenizer_files=(("tokenizer.json",), ("vocab.txt",)),
    renames=(
        ("text_model.", f"{TEXT}."),
        ("text_projection.", "text.proj."),
        ("vision_model.layers.", f"{VISION}.blocks."),
        (".attention.o_proj.", ".attn.proj."),
        *((f".attention.{part}_proj.", ".attn.qkv.") for part in "qkv"),
        (".layernorm_before.", ".norm1."),
        (".layernorm_after.", ".norm2."),
        ("vision_model.embeddings.cls_token", f"{VISION}.cls_token"),
        ("vision_model.embeddings.position_embeddings", f"{VISION}.pos_embed"),
        ("vision_model.embeddings.patch_embeddings.projection.", f"{VISION}.patch_embed.proj."),
        ("vision_model.layernorm.", f"{VISION}.norm."),
        ("visual_projection.", "visual.head.proj."),
    ),
    transposed=frozenset(),
    unused=frozenset({f"{TEXT}.embeddings.position_ids"}),  # saved by transformers until 4.31: 0, 1, 2, ...
    config=_config,
    build=_build,
)
