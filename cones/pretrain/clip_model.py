"""The built-in backbones: real models of their libraries at toy width, trained from scratch on the generated world."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cones.pretrain.vocabulary import GENERAL_WORDS

IMAGE_SIZE, PATCH, WIDTH = 64, 8, 128
VOCABULARY_SIZE = 1200


def train_tokenizer(captions: list[str], folder: Path) -> None:
    """Train a small byte-level BPE on captions and general words; write it in CLIP's tokenizer layout."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    marks = ["<|startoftext|>", "<|endoftext|>"]
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=marks[1]))
    reference = CLIPTokenizer()._tokenizer
    bpe.normalizer, bpe.pre_tokenizer, bpe.decoder = (
        reference.normalizer,
        reference.pre_tokenizer,
        decoders.ByteLevel(),
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # A letter that ends a word must be known, or an unseen name would lose its last letter. The trainer numbers those
    # that it meets in an order of chance, which decides between equally frequent pairs; given first, they have theirs.
    endings = [letter + "</w>" for letter in alphabet]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=marks + endings,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator([*captions, *GENERAL_WORDS.split() * 3], trainer)
    model = json.loads(bpe.to_str())["model"]
    tokenizer = CLIPTokenizer(vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]], model_max_length=77)
    tokenizer.save_pretrained(folder)


def clip_model(vocabulary_size: int) -> Any:
    """A `CLIPModel` of 1.6 M parameters for 64-pixel pictures: random weights, sine-cosine patch positions."""
    from transformers import CLIPConfig, CLIPModel

    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = {"num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": vocabulary_size}
    vision = {"num_hidden_layers": 4, "num_attention_heads": 2, "image_size": IMAGE_SIZE, "patch_size": PATCH}
    shared = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "hidden_act": "gelu", "projection_dim": WIDTH}
    config = CLIPConfig(
        text_config={**shared, **text, **tokens}, vision_config={**shared, **vision}, projection_dim=WIDTH, **tokens
    )
    model = CLIPModel._from_config(config, attn_implementation="eager")  # twice as fast as SDPA at this width on a CPU
    side = torch.arange(IMAGE_SIZE // PATCH, dtype=torch.float32)
    rates = 100 ** -(torch.arange(WIDTH // 4) / (WIDTH // 4))
    y, x = (grid.flatten()[:, None] * rates for grid in torch.meshgrid(side, side, indexing="ij"))
    with torch.no_grad():
        positions = torch.cat([y.sin(), y.cos(), x.sin(), x.cos()], dim=1)
        model.vision_model.embeddings.position_embedding.weight[1:] = 0.3 * positions
    return model


@dataclass(frozen=True)
class Pool:
    """What pretraining sees: normalised pictures (N, 3, H, W) and caption tokens (N, T); for each patch (N, P) the
    class of the thing on it, or the number of classes for none; the class of pictures of one thing (N,), else -100."""

    pixels: Tensor
    captions: Tensor
    patches: Tensor
    labels: Tensor


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """CLIP's symmetric loss over normalised features (B, d); `same` (B, B) marks pairs whose captions are equal."""
    logits = scale * image @ text.T
    targets = same.float() / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def train_clip(
    model: Any, pool: Pool, name_ids: Tensor, steps: int, seed: int, on_step: Callable[[int, float], None]
) -> None:
    """Train a tiny CLIP in place.

    To CLIP's own loss come two that let a vision transformer see shapes after a hundred thousand pictures rather than
    millions: the class names `name_ids` (C, T) as a zero-shot classifier, and the class of the thing on each patch,
    by a linear head that is thrown away. `on_step(step, loss)` is called after each step.
    """
    head = nn.Linear(WIDTH, len(name_ids) + 1)
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    known = {id(p) for p in hidden}
    rest = [p for p in [*model.parameters(), *head.parameters()] if id(p) not in known]
    optimisers = [
        torch.optim.Muon(hidden, lr=0.008, momentum=0.95, weight_decay=0.05),
        torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda s: _trapezoid(s, steps)) for o in optimisers]
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for step in range(steps):
        rows = torch.randint(len(pool.pixels), (64,), generator=generator)
        flip = bool(torch.rand((), generator=generator) < 0.5)
        loss = _pretraining_loss(model, head, pool, rows, flip, name_ids)
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([*hidden, *rest], 1.0)
        for optimiser, schedule in zip(optimisers, schedules):
            optimiser.step()
            schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        on_step(step, loss.item())
    model.eval()


def _pretraining_loss(model: Any, head: nn.Module, pool: Pool, rows: Tensor, flip: bool, name_ids: Tensor) -> Tensor:
    pixels, captions, patches = pool.pixels[rows], pool.captions[rows], pool.patches[rows]
    captions = captions[:, : int((captions != 1).sum(1).max()) + 1]
    if flip:
        side = IMAGE_SIZE // PATCH
        pixels, patches = pixels.flip(-1), patches.view(-1, side, side).flip(-1).flatten(1)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(pixel_values=pixels, input_ids=captions)
        seen = head(model.vision_model.post_layernorm(output.vision_model_output.last_hidden_state[:, 1:]))
        names = model.get_text_features(name_ids).pooler_output
    image, text, scale = output.image_embeds.float(), output.text_embeds.float(), model.logit_scale.exp()
    same = (captions[:, None] == captions[None]).all(-1)
    named = scale * image @ F.normalize(names.float(), dim=-1).T
    return (
        contrastive_loss(image, text, scale, same)
        + F.cross_entropy(named, pool.labels[rows])
        + F.cross_entropy(seen.float().flatten(0, 1), patches.flatten())
    )


def _trapezoid(step: int, steps: int) -> float:
    """Warm up for 50 steps, hold, fall to zero over the last two fifths."""
    return min(1.0, (step + 1) / 50, (1 - step / steps) / 0.4)


def save_half(model: Any, folder: Path) -> None:
    """Save a model's weights as float16 safetensors in its library's layout."""
    model.half().save_pretrained(folder)
