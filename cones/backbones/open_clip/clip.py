"""OpenCLIP's ViTs, which become CLIPs: their settings and names (open_clip's `CLIP` and `VisionTransformer`)."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from cones.backbones.open_clip.layout import Layout, Preprocess, Size
from cones.common.settings import Strict


class Vision(Strict):
    image_size: Size = 224
    layers: Size = 12
    width: Size = 768
    head_width: Size = 64
    mlp_ratio: float = Field(default=4.0, gt=0)
    patch_size: Size = 16
    patch_dropout: float = 0.0
    """Of training alone."""


class Text(Strict):
    context_length: Size = 77
    vocab_size: Size = 49408
    width: Size = 512
    heads: Size = 8
    layers: Size = 12
    mlp_ratio: float = Field(default=4.0, gt=0)


class Model(Strict):
    embed_dim: Size
    vision_cfg: Vision
    text_cfg: Text
    quick_gelu: bool = False


class Settings(Strict):
    model_cfg: Model
    preprocess_cfg: Preprocess = Preprocess()


def _config(settings: Settings, state: Mapping[str, Tensor]) -> dict[str, Any]:
    model, vision, text = settings.model_cfg, settings.model_cfg.vision_cfg, settings.model_cfg.text_cfg
    common = {"hidden_act": "quick_gelu" if model.quick_gelu else "gelu", "projection_dim": model.embed_dim}
    return {
        "model_type": "clip",
        "projection_dim": model.embed_dim,
        "vision_config": {
            **common,
            "hidden_size": vision.width,
            "intermediate_size": int(vision.width * vision.mlp_ratio),
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.width // vision.head_width,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
        },
        "text_config": {
            **common,
            "hidden_size": text.width,
            "intermediate_size": int(text.width * text.mlp_ratio),
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "max_position_embeddings": text.context_length,
            "vocab_size": text.vocab_size,
            "bos_token_id": text.vocab_size - 2,
            "eos_token_id": text.vocab_size - 1,  # open_clip reads a sentence off at its highest id
        },
    }


def _build(config: Mapping[str, Any]) -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    return CLIPModel(CLIPConfig(**{k: v for k, v in config.items() if k != "model_type"}))


LAYOUT = Layout(
    settings=Settings,
    tokenizer="CLIPTokenizer",
    tokenizer_files=(("tokenizer.json",), ("vocab.json", "merges.txt")),
    renames=(
        ("text_model.encoder.layers.", "transformer.resblocks."),
        ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
        (".self_attn.out_proj.", ".attn.out_proj."),
        *((f".self_attn.{part}_proj.", ".attn.in_proj_") for part in "qkv"),
        (".layer_norm", ".ln_"),
        (".mlp.fc1.", ".mlp.c_fc."),
        (".mlp.fc2.", ".mlp.c_proj."),
        ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
        ("text_model.embeddings.", ""),
        ("text_model.final_layer_norm.", "ln_final."),
        ("text_projection.weight", "text_projection"),
        ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
        ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
        ("vision_model.embeddings.", "visual."),
        ("vision_model.pre_layrnorm.", "visual.ln_pre."),
        ("vision_model.post_layernorm.", "visual.ln_post."),
        ("visual_projection.weight", "visual.proj"),
    ),
    transposed=frozenset({"text_projection.weight", "visual_projection.weight"}),
    unused=frozenset(),
    config=_config,
    build=_build,
)
