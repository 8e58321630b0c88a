"""Toy models in open_clip's layout, with the names that it publishes, and what each computes, step by step."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from cones.common.files import write_json

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
BIOMED_TEXT = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
WORDS = ["a", "photo", "of", "star", "heart", "zorb", "very", "grain", "##y", ".", ",", "red"]


def clip_settings(vision: Mapping[str, Any], text: Mapping[str, Any], joint: int, **more: Any) -> dict[str, Any]:
    """`open_clip_config.json` of an OpenCLIP."""
    model = {"embed_dim": joint, "vision_cfg": dict(vision), "text_cfg": dict(text), **more}
    return {"model_cfg": model, "preprocess_cfg": {"mean": MEAN, "std": STD}}


def blocks(prefix: str, layers: int, width: int, inner: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of open_clip's `Transformer`."""
    one = {
        "attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width), "attn.out_proj.bias": (width,),
        "ln_1.weight": (width,), "ln_1.bias": (width,), "ln_2.weight": (width,), "ln_2.bias": (width,),
        "mlp.c_fc.weight": (inner, width), "mlp.c_fc.bias": (inner,),
        "mlp.c_proj.weight": (width, inner), "mlp.c_proj.bias": (width,),
    }  # fmt: skip
    return {f"{prefix}resblocks.{i}.{name}": shape for i in range(layers) for name, shape in one.items()}


def clip_shapes(settings: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of open_clip's `CLIP` with a `VisionTransformer`."""
    model = settings["model_cfg"]
    vision, text, joint = model["vision_cfg"], model["text_cfg"], model["embed_dim"]
    w, t, side = vision["width"], text["width"], vision["patch_size"]
    places = (vision["image_size"] // side) ** 2 + 1
    return {
        "positional_embedding": (text["context_length"], t), "text_projection": (t, joint), "logit_scale": (),
        "visual.class_embedding": (w,), "visual.positional_embedding": (places, w), "visual.proj": (w, joint),
        "visual.conv1.weight": (w, 3, side, side), "token_embedding.weight": (text["vocab_size"], t),
        **{f"{name}.{kind}": (width,) for name, width in (("visual.ln_pre", w), ("visual.ln_post", w), ("ln_final", t))
           for kind in ("weight", "bias")},
        **blocks("visual.transformer.", vision["layers"], w, int(w * vision.get("mlp_ratio", 4))),
        **blocks("transformer.", text["layers"], t, 4 * t),
    }  # fmt: skip


def biomed_settings(side: int, joint: int, length: int = 256) -> dict[str, Any]:
    """`open_clip_config.json` of BiomedCLIP, as published but for its sizes."""
    vision = {"timm_model_name": "vit_base_patch16_224", "timm_model_pretrained": False, "timm_pool": "",
              "timm_proj": "linear", "image_size": side}  # fmt: skip
    text = {"hf_model_name": BIOMED_TEXT, "hf_tokenizer_name": BIOMED_TEXT, "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler", "context_length": length}  # fmt: skip
    model = {"embed_dim": joint, "vision_cfg": vision, "text_cfg": text}
    return {"model_cfg": model, "preprocess_cfg": {"mean": MEAN, "std": STD}}


def biomed_shapes(
    width: int, layers: int, joint: int, words: int, places: int, side: int, patch: int
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of open_clip's `CustomTextCLIP` with a BERT and a ViT of timm, both of one width and depth."""
    w, inner, between = width, 4 * width, (width + joint) // 2
    weights = {
        "attention.self.query": (w, w), "attention.self.key": (w, w), "attention.self.value": (w, w),
        "attention.output.dense": (w, w), "attention.output.LayerNorm": (w,),
        "intermediate.dense": (inner, w), "output.dense": (w, inner), "output.LayerNorm": (w,),
    }  # fmt: skip
    text = {f"text.transformer.encoder.layer.{i}.{n}": s for i in range(layers) for n, s in weights.items()}
    weights = {"norm1": (w,), "attn.qkv": (3 * w, w), "attn.proj": (w, w), "norm2": (w,), "mlp.fc1": (inner, w),
               "mlp.fc2": (w, inner)}  # fmt: skip
    vision = {f"visual.trunk.blocks.{i}.{n}": s for i in range(layers) for n, s in weights.items()}
    both = text | vision | {"text.transformer.embeddings.LayerNorm": (w,), "visual.trunk.norm": (w,)}
    both["visual.trunk.patch_embed.proj"] = (w, 3, patch, patch)
    return {
        "logit_scale": (),
        "visual.trunk.cls_token": (1, 1, w), "visual.trunk.pos_embed": (1, (side // patch) ** 2 + 1, w),
        "visual.head.proj.weight": (joint, w),
        "text.proj.0.weight": (between, w), "text.proj.2.weight": (joint, between),
        "text.transformer.embeddings.word_embeddings.weight": (words, w),
        "text.transformer.embeddings.position_embeddings.weight": (places, w),
        "text.transformer.embeddings.token_type_embeddings.weight": (2, w),
        **{f"{name}.weight": shape for name, shape in both.items()},
        **{f"{name}.bias": shape[:1] for name, shape in both.items()},
    }  # fmt: skip


def random_weights(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Large enough for each of them to matter."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes.items():
        spread = 1 / math.sqrt(shape[-1]) if len(shape) == 2 else 0.3
        found[name] = spread * torch.randn(shape, generator=draw) + ("norm" in name.lower() or ".ln_" in name)
    return found


def write_clip_tokenizer(folder: Path) -> int:
    """CLIP's tokenizer with a word for each letter, its marks last; returns how many words it has."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("s", "t"), ("st", "a"), ("sta", "r</w>"), ("h", "e"), ("o", "f</w>")]
    words = [*letters, *(f"{x}</w>" for x in letters), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    write_json(folder / "vocab.json", {word: i for i, word in enumerate(words)})
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n")
    marks = {"bos_token": words[-2], "eos_token": words[-1], "unk_token": words[-1], "pad_token": words[-1]}
    write_json(folder / "tokenizer_config.json", {**marks, "model_max_length": 77})
    return len(words)


def write_bert_tokenizer(folder: Path) -> int:
    letters = [f"{mark}{letter}" for letter in "abcdefghijklmnopqrstuvwxyz" for mark in ("", "##")]
    words = list(dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters]))
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    write_json(folder / "tokenizer_config.json", {"model_max_length": 1000000000000000019884624838656})
    return len(words)


def write_toy_clip(folder: Path, quick: bool = False, pickled: bool = False) -> dict[str, Tensor]:
    """An OpenCLIP of 2 layers, pictures of 32 pixels and 4 and 2 heads; returns its weights."""
    folder.mkdir()
    words = write_clip_tokenizer(folder)
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8, "mlp_ratio": 2.5}
    text = {"context_length": 40, "vocab_size": words, "width": 24, "heads": 2, "layers": 2}
    settings = clip_settings(vision, text, 16, **{"quick_gelu": True} if quick else {})
    weights = random_weights(clip_shapes(settings))
    write_published(folder, settings, weights, pickled)
    return weights


def write_toy_biomedclip(folder: Path, pickled: bool = True) -> dict[str, Tensor]:
    """A BiomedCLIP of 2 layers and 2 heads, pictures of 32 pixels and sentences of 40 tokens; returns its weights."""
    folder.mkdir()
    words = write_bert_tokenizer(folder)
    weights = random_weights(biomed_shapes(128, 2, 24, words, places=48, side=32, patch=8))
    weights["text.transformer.embeddings.position_ids"] = torch.arange(48)[None]
    write_published(folder, biomed_settings(32, 24, length=40), weights, pickled)
    return weights


def write_published(folder: Path, settings: Mapping[str, Any], weights: Mapping[str, Tensor], pickled: bool) -> None:
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    if pickled:
        torch.save(dict(weights), folder / "open_clip_pytorch_model.bin")
    else:
        save_file(dict(weights), folder / "open_clip_model.safetensors")


def layer_norm(state: Mapping[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    mean, spread = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / torch.sqrt(spread + eps) * state[f"{name}.weight"] + state[f"{name}.bias"]


def attended(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """One sentence or picture (T, d), head by head; `mask` (T, T) is added."""
    found = []
    for i in range(heads):
        part = slice(i * q.shape[-1] // heads, (i + 1) * q.shape[-1] // heads)
        scores = q[:, part] @ k[:, part].T / math.sqrt(q.shape[-1] // heads)
        found.append((scores if mask is None else scores + mask).softmax(-1) @ v[:, part])
    return torch.cat(found, -1)


def clip_block(
    state: Mapping[str, Tensor], name: str, x: Tensor, heads: int, quick: bool, mask: Tensor | None = None
) -> Tensor:
    """open_clip's `ResidualAttentionBlock` of one sentence or picture (T, d)."""
    h = layer_norm(state, f"{name}.ln_1", x, 1e-5)
    q, k, v = (h @ state[f"{name}.attn.in_proj_weight"].T + state[f"{name}.attn.in_proj_bias"]).chunk(3, -1)
    x = x + attended(q, k, v, heads, mask) @ state[f"{name}.attn.out_proj.weight"].T
    x = x + state[f"{name}.attn.out_proj.bias"]
    h = layer_norm(state, f"{name}.ln_2", x, 1e-5) @ state[f"{name}.mlp.c_fc.weight"].T
    h = h + state[f"{name}.mlp.c_fc.bias"]
    h = h * torch.sigmoid(1.702 * h) if quick else F.gelu(h)
    return x + h @ state[f"{name}.mlp.c_proj.weight"].T + state[f"{name}.mlp.c_proj.bias"]


def clip_picture(state: Mapping[str, Tensor], pixels: Tensor, layers: int, heads: int, quick: bool) -> Tensor:
    """`encode_image` of one picture (3, H, W)."""
    weight = state["visual.conv1.weight"]
    patches = F.conv2d(pixels[None], weight, stride=weight.shape[-1])[0].flatten(1).T
    x = torch.cat([state["visual.class_embedding"][None], patches]) + state["visual.positional_embedding"]
    x = layer_norm(state, "visual.ln_pre", x, 1e-5)
    for i in range(layers):
        x = clip_block(state, f"visual.transformer.resblocks.{i}", x, heads, quick)
    return layer_norm(state, "visual.ln_post", x[0], 1e-5) @ state["visual.proj"]


def clip_text(state: Mapping[str, Tensor], ids: Tensor, layers: int, heads: int, quick: bool) -> Tensor:
    """`encode_text` of one sentence (T,), filled up with zeros to the context length as open_clip's tokenizer does."""
    places = len(state["positional_embedding"])
    ids = F.pad(ids, (0, places - len(ids)))
    x = state["token_embedding.weight"][ids] + state["positional_embedding"]
    mask = torch.full((places, places), -torch.inf).triu(1)
    for i in range(layers):
        x = clip_block(state, f"transformer.resblocks.{i}", x, heads, quick, mask)
    return layer_norm(state, "ln_final", x, 1e-5)[ids.argmax()] @ state["text_projection"]


def linear(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def biomed_picture(
    state: Mapping[str, Tensor], pixels: Tensor, layers: int, heads: int, prompts: Tensor | None = None
) -> Tensor:
    """`encode_image` of one picture (3, H, W): timm's `VisionTransformer`, [CLS] of it, and the head.

    With `prompts` (L, m, d), those of a layer stand between [CLS] and the patches when it begins.
    """
    weight = state["visual.trunk.patch_embed.proj.weight"]
    bias = state["visual.trunk.patch_embed.proj.bias"]
    patches = F.conv2d(pixels[None], weight, bias, stride=weight.shape[-1])[0].flatten(1).T
    x = torch.cat([state["visual.trunk.cls_token"][0], patches]) + state["visual.trunk.pos_embed"][0]
    for i in range(layers):
        if prompts is not None and i < len(prompts):
            x = torch.cat([x[:1], prompts[i], x[-len(patches) :]])
        name = f"visual.trunk.blocks.{i}"
        q, k, v = linear(state, f"{name}.attn.qkv", layer_norm(state, f"{name}.norm1", x, 1e-6)).chunk(3, -1)
        x = x + linear(state, f"{name}.attn.proj", attended(q, k, v, heads))
        h = F.gelu(linear(state, f"{name}.mlp.fc1", layer_norm(state, f"{name}.norm2", x, 1e-6)))
        x = x + linear(state, f"{name}.mlp.fc2", h)
    return layer_norm(state, "visual.trunk.norm", x[0], 1e-6) @ state["visual.head.proj.weight"].T


def biomed_text(state: Mapping[str, Tensor], ids: Tensor, layers: int, heads: int) -> Tensor:
    """`encode_text` of one sentence (T,) without padding, which the mask hides."""
    base = "text.transformer"
    x = state[f"{base}.embeddings.word_embeddings.weight"][ids]
    x = x + state[f"{base}.embeddings.position_embeddings.weight"][: len(ids)]
    x = x + state[f"{base}.embeddings.token_type_embeddings.weight"][0]
    x = layer_norm(state, f"{base}.embeddings.LayerNorm", x, 1e-12)
    for i in range(layers):
        name = f"{base}.encoder.layer.{i}"
        q, k, v = (linear(state, f"{name}.attention.self.{part}", x) for part in ("query", "key", "value"))
        h = linear(state, f"{name}.attention.output.dense", attended(q, k, v, heads))
        x = layer_norm(state, f"{name}.attention.output.LayerNorm", x + h, 1e-12)
        h = linear(state, f"{name}.output.dense", F.gelu(linear(state, f"{name}.intermediate.dense", x)))
        x = layer_norm(state, f"{name}.output.LayerNorm", x + h, 1e-12)
    return F.gelu(x[0] @ state["text.proj.0.weight"].T) @ state["text.proj.2.weight"].T
