"""`glip-tiny`: a real mmdet GLIP at toy width with a mask head, trained from scratch on the generated world."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cones.interfaces.pictures import Geometry, Instances
from cones.pretrain.grounding import Grounded
from cones.pretrain.vocabulary import GENERAL_WORDS

SIDE, WIDTH, TEXT_WIDTH = 128, 64, 96
VOCABULARY_SIZE = 700
LEAST_SHARE = 0.3
"""Of a cell, that a thing covers to be what the cell shows."""
PEAK_RATE = 1.5e-3
STRIDES = [8, 16, 32, 64, 128]
CONFIG: dict[str, Any] = {
    "model_type": "glip",
    "max_text_tokens": 128,
    "preprocessing": {
        "scale": [SIDE, SIDE],
        "divisor": 32,
        "channels": "rgb",
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
    },
    "backbone": {
        "type": "ResNet",
        "depth": 34,
        "base_channels": 24,
        "num_stages": 4,
        "strides": [1, 1, 1, 2],
        "out_indices": [3],
        "norm_cfg": {"type": "BN"},
        "norm_eval": True,
    },
    "neck": {
        "type": "FPN",
        "in_channels": [192],
        "out_channels": WIDTH,
        "start_level": 0,
        "relu_before_extra_convs": True,
        "add_extra_convs": "on_output",
        "num_outs": 5,
    },
    "bbox_head": {
        "num_classes": 80,
        "in_channels": WIDTH,
        "feat_channels": WIDTH,
        "early_fuse": True,
        "num_dyhead_blocks": 1,
        "fusion_width": 128,
        "fusion_heads": 4,
        "anchor_generator": {
            "type": "AnchorGenerator",
            "ratios": [1.0],
            "octave_base_scale": 8,
            "scales_per_octave": 1,
            "strides": STRIDES,
            "center_offset": 0.5,
        },
        "bbox_coder": {
            "type": "DeltaXYWHBBoxCoderForGLIP",
            "target_means": [0.0, 0.0, 0.0, 0.0],
            "target_stds": [0.1, 0.1, 0.2, 0.2],
        },
    },
    "mask_head": {"channels": WIDTH, "width": 32, "convs": 1, "strides": STRIDES[:4]},
    "train_cfg": {
        "assigner": {"type": "ATSSAssigner", "topk": 9, "iou_calculator": {"type": "BboxOverlaps2D_GLIP"}},
        "allowed_border": -1,
        "pos_weight": -1,
        "debug": False,
    },
    "test_cfg": {
        "nms_pre": 300,
        "min_bbox_size": 0,
        "score_thr": 0.02,
        "nms": {"type": "nms", "iou_threshold": 0.6},
        "max_per_img": 40,
    },
}
BERT = {
    "model_type": "bert",
    "hidden_size": TEXT_WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 4 * TEXT_WIDTH,
    "max_position_embeddings": 256,
    "attention_probs_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
}


def write_text_encoder(phrases: Sequence[str], folder: Path) -> None:
    """Train a small WordPiece on phrases and general words; write it with BERT's configuration, as BERT has them."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertTokenizerFast

    folder.mkdir(parents=True)
    pieces = BertWordPieceTokenizer(lowercase=True)
    every_letter = [2 * letter for letter in "abcdefghijklmnopqrstuvwxyz0123456789"]  # at a word's start and inside
    pieces.train_from_iterator(
        [*phrases, *GENERAL_WORDS.split() * 3, *every_letter],
        vocab_size=VOCABULARY_SIZE, min_frequency=1, show_progress=False,
    )  # fmt: skip
    pieces.save_model(str(folder))
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True)
    tokenizer.save_pretrained(folder)
    BertConfig(**BERT, vocab_size=len(tokenizer)).save_pretrained(folder)


def write_glip(parts: nn.ModuleDict, folder: Path, config: dict[str, Any] = CONFIG) -> None:
    """Write the configuration, and the weights in half precision, beside the text encoder's files."""
    from safetensors.torch import save_file

    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    halves = {k: v.half() if v.is_floating_point() else v for k, v in parts.state_dict().items()}
    save_file({k: v.contiguous() for k, v in halves.items()}, folder / "model.safetensors")


def train_glip(
    parts: nn.ModuleDict,
    draw: Callable[[int], Sequence[Grounded]],
    kinds: Sequence[int],
    steps: int,
    on_step: Callable[[int, float], None],
) -> None:
    """Train all parts of a GLIP in place, on grounded pictures: `draw(step)` gives a batch of one size.

    Text tokens are matched with regions as GLIP does it (Li et al. 2022, section 3.1); the mask head learns in the true
    boxes, moved a little, since at use they are predicted ones. To these comes a loss that lets a network see shapes
    after thousands of pictures rather than millions: the kinds (as many of each as `kinds` says) of the thing on each
    cell of the finest level, by a head that is thrown away. `on_step(step, loss)` is called after each step.
    """
    cells = nn.Conv2d(WIDTH, sum(n + 1 for n in kinds), 1)
    trained = nn.ModuleList([parts, cells])
    decayed = [p for p in trained.parameters() if p.ndim > 1]
    plain = [p for p in trained.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], lr=PEAK_RATE
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, PEAK_RATE, total_steps=steps, pct_start=0.08, cycle_momentum=False
    )
    parts.to(memory_format=torch.channels_last).train()
    captions = _Captions(parts["language_model"])
    for step in range(steps):
        loss = _grounding_loss(parts, cells, kinds, captions, draw(step))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        on_step(step, loss.item())
    parts.to(memory_format=torch.contiguous_format).eval()


class _Captions:
    """Phrases made into one caption a picture, with the tokens of each phrase."""

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder
        self.pieces: dict[str, list[int]] = {}

    def _ids(self, phrase: str) -> list[int]:
        if phrase not in self.pieces:
            self.pieces[phrase] = self.encoder.tokenizer(phrase, add_special_tokens=False).input_ids
        return self.pieces[phrase]

    def __call__(self, batch: Sequence[Grounded]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The batch's text for mmdet's head, and for each picture which tokens (P, T) belong to each phrase."""
        t = self.encoder.tokenizer
        stop = self._ids(".")
        rows, spans = [], []
        for one in batch:
            ids, places = [t.cls_token_id], []
            for i, phrase in enumerate(one.phrases):
                words = self._ids(phrase)
                ids += stop if i else []
                places.append((len(ids), len(ids) + len(words)))
                ids += words
            rows.append([*ids, t.sep_token_id])
            spans.append(places)
        longest = max(map(len, rows))
        ids = torch.tensor([r + [t.pad_token_id] * (longest - len(r)) for r in rows])
        mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows])
        hidden = self.encoder.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        tokens = [torch.zeros(len(places), longest) for places in spans]
        for owned, places in zip(tokens, spans):
            for row, (start, end) in zip(owned, places):
                row[start:end] = 1
        return {"embedded": hidden * mask[..., None], "hidden": hidden, "masks": mask}, tokens


def _grounding_loss(
    parts: nn.ModuleDict, cells: nn.Module, kinds: Sequence[int], captions: _Captions, batch: Sequence[Grounded]
) -> Tensor:
    from cones.backbones.glip.masks import SIZE, crop_masks
    from cones.backbones.glip.parts import sample_of

    mean, std = (torch.tensor(CONFIG["preprocessing"][k]).view(3, 1, 1) for k in ("mean", "std"))
    pixels = (torch.stack([one.pixels for one in batch]).float() - mean) / std
    with torch.autocast("cpu", torch.bfloat16):
        pyramid = parts["neck"](parts["backbone"](pixels.contiguous(memory_format=torch.channels_last)))
    lang, tokens = captions(batch)
    head, masks = parts["bbox_head"], parts["mask_head"]
    head.feat_channels = lang["masks"].shape[1]
    samples, instances = [], []
    for one, owned in zip(batch, tokens):
        shape = Geometry((SIDE, SIDE), (SIDE, SIDE), (SIDE, SIDE))
        labels = torch.zeros(len(one.boxes), dtype=torch.long)
        sample = sample_of(shape, {1: [0]}, Instances(one.boxes, labels), head.feat_channels)
        sample.gt_instances.positive_maps = (one.matches.float() @ owned).clamp(max=1)
        samples.append(sample)
        boxes = _moved(one.boxes)
        instances.append(Instances(boxes, labels, crops=crop_masks(one.masks, boxes, SIZE)))
    losses = head.loss(tuple(level.float() for level in pyramid), lang, samples)
    return sum(losses.values()) + masks.loss(head.head.fused, instances) + _cell_loss(cells, kinds, pyramid[0], batch)


def _cell_loss(cells: nn.Module, kinds: Sequence[int], level: Tensor, batch: Sequence[Grounded]) -> Tensor:
    """Cross entropy of the kinds of the thing on each cell of a level, or of none, summed over the sorts of kinds."""
    side = level.shape[-1]
    truth = torch.tensor(kinds).view(1, -1, 1, 1).repeat(len(batch), 1, side, side)
    for of_picture, one in zip(truth, batch):
        share = F.adaptive_avg_pool2d(one.masks.float(), side)
        for mask, thing in zip(share > LEAST_SHARE, one.kinds):
            of_picture[:, mask] = thing[:, None]
    logits = cells(level.float()).split([n + 1 for n in kinds], dim=1)
    return sum((F.cross_entropy(x, y) for x, y in zip(logits, truth.unbind(1))), torch.zeros(()))


def _moved(boxes: Float[Tensor, "n 4"], by: float = 0.08) -> Float[Tensor, "n 4"]:
    """Boxes whose sides are moved by up to a share of their size."""
    size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    return (boxes + (2 * torch.rand_like(boxes) - 1) * by * size).clamp(0, SIDE)
