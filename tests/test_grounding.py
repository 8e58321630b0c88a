"""What `glip-tiny` is pretrained on: phrases that are true of what they are matched with; and every part learns."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from toys import toy_glip_config

from cones.backbones.glip.parts import PARTS, build_part
from cones.pretrain import glip_model as glip_tiny
from cones.pretrain.grounding import GENERIC, VALUES, grounded
from cones.synthetic.world import SHAPES, scenes_picture

SIZE = glip_tiny.SIDE


def scene(index: int) -> Any:
    return scenes_picture(0, "pretrain", index, SIZE, SHAPES, 5)


def test_phrases_are_matched_with_what_they_are_true_of() -> None:
    mirrored = 0
    for index in range(40):
        one = grounded(scene(index), np.random.default_rng(index))
        assert len(set(one.phrases)) == len(one.phrases)
        for box, mask, kinds, matches in zip(one.boxes, one.masks, one.kinds, one.matches):
            rows, columns = mask.nonzero().unbind(1)
            tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == [float(v) for v in tight]
            said = {values[kind] for kind, values in zip(kinds.tolist(), VALUES.values())}
            for phrase, match in zip(one.phrases, matches.tolist()):
                assert match == (set(phrase.split()) - {GENERIC} <= said)
        mirrored += not np.array_equal(one.pixels.permute(1, 2, 0).numpy(), scene(index).image)
    assert 8 < mirrored < 32


def test_every_part_of_a_glip_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = toy_glip_config(preprocessing={"scale": [SIZE, SIZE]})
    monkeypatch.setattr(glip_tiny, "CONFIG", toy)
    monkeypatch.setattr(glip_tiny, "WIDTH", toy["neck"]["out_channels"])
    glip_tiny.write_text_encoder([word for values in VALUES.values() for word in values], tmp_path / "text_encoder")
    torch.manual_seed(0)
    parts = nn.ModuleDict({name: build_part(name, toy, tmp_path) for name in PARTS})
    before, losses = copy.deepcopy(dict(parts.named_parameters())), []

    def draw(step: int) -> list:
        return [grounded(scene(i), np.random.default_rng(i)) for i in range(4)]

    kinds = [len(values) for values in VALUES.values()]
    glip_tiny.train_glip(parts, draw, kinds, 8, lambda step, loss: losses.append(loss))
    assert losses[-1] < losses[0]
    assert {n.split(".")[0] for n in before} == set(PARTS)
    still = {n for n, p in parts.named_parameters() if torch.equal(p, before[n])}
    assert still <= {f"bbox_head.head.scales.{level}.scale" for level in range(1, 5)}  # levels without a match
