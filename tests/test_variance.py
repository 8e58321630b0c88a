"""UPT's analysis: both variances by hand and as the world's knobs move them, and what the bench makes of them."""

from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import upt_analysis
from accelerate import Accelerator
from conftest import ROOT
from PIL import Image
from scipy.stats import spearmanr
from torch.nn import functional as F
from upt_advice import ALONE, leave_one_out
from upt_relations import relations

from cones.backbones import open_backbone
from cones.common.errors import DataError
from cones.synthetic.world import described, faint, picture
from cones.tasks.classification.variance import text_variance, visual_variance


def test_the_variances_are_what_a_hand_finds() -> None:
    """Class 0 has (1, 0) and (0, 1): their mean is (1/2, 1/2), each 1/2 from it. Class 1 has one direction twice."""
    features = torch.tensor([[3.0, 0.0], [0.0, 0.5], [1.0, 1.0], [7.0, 7.0]])
    assert visual_variance(features, torch.tensor([0, 0, 1, 1])) == pytest.approx((0.5 + 0) / 2)
    # three of one class and one of another: (2/3, 1/3) is 2/9 from two of them and 8/9 from the third
    features = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 9.0]])
    assert visual_variance(features, torch.tensor([0, 0, 0, 4])) == pytest.approx((2 / 9 + 2 / 9 + 8 / 9) / 3 / 2)
    assert text_variance(torch.tensor([[2.0, 0.0], [-3.0, 0.0]])) == pytest.approx(1)
    assert text_variance(torch.tensor([[2.0, 1.0], [4.0, 2.0]])) == pytest.approx(0, abs=1e-12)
    with pytest.raises(DataError, match="no pictures"):
        visual_variance(torch.empty(0, 2), torch.empty(0, dtype=torch.long))


def test_each_knob_moves_its_own_variance_and_the_other_little() -> None:
    backbone = open_backbone("clip", ROOT / "models/backbones/clip-tiny", "cpu")
    knobs, found = [], []
    levels = (["texture"], ["shape"], ["colour", "shape"])
    for seed, (variety, apart) in enumerate(product((0.0, 0.3, 1.0), range(3))):
        names = described(levels[apart], seed)
        pixels = backbone.pixels([Image.fromarray(_drawn(seed, i, names, variety)) for i in range(72)])
        with torch.no_grad():
            features, text = backbone.encode(pixels)["image"], backbone.embed_text(names).embeds[0]
        knobs.append((variety, apart))
        found.append((visual_variance(features, torch.arange(72) % 6), text_variance(text)))
    ranks = spearmanr(torch.tensor(knobs), torch.tensor(found)).statistic[:2, 2:]
    assert ranks.diagonal().min() > 0.85
    assert abs(ranks[0, 1]) < 0.3 > abs(ranks[1, 0])


def _drawn(seed: int, index: int, names: tuple[str, ...], variety: float) -> np.ndarray:
    return faint(picture(seed, "train", index, 64, names[index % 6], variety).image, 0.5)


def test_what_a_picture_left_out_is_said_to_be() -> None:
    """By fitting each rule without it."""
    torch.manual_seed(0)
    features, labels, text = torch.randn(20, 6), torch.arange(20) % 3, torch.randn(3, 6)
    x, t = F.normalize(features.double(), dim=-1), F.normalize(text.double(), dim=-1)
    right: dict[str, list[bool]] = {name: [] for name in ALONE}
    for i in range(20):
        rest = [j for j in range(20) if j != i]
        one = F.one_hot(labels[rest], 3).double()
        means = F.normalize(torch.stack([x[rest][labels[rest] == c].mean(0) for c in range(3)]), dim=-1)
        weight = torch.linalg.solve(x[rest].T @ x[rest] + torch.eye(6).double(), x[rest].T @ one)
        keys = torch.exp(-5.5 * (1 - x[i] @ x[rest].T))
        told = x[i] @ t.T
        scores = told, x[i] @ means.T, told + x[i] @ means.T, 4 * told + keys @ one, x[i] @ weight
        for name, of in zip(ALONE, scores):
            right[name].append(bool(of.argmax() == labels[i]))
    assert leave_one_out(features, labels, text, 4.0) == {name: sum(of) / 20 for name, of in right.items()}


def test_relations_find_what_was_put_in() -> None:
    """A gain of CoOp that falls with one variance, one of VPT that rises with the other, and one of chance."""
    rng = np.random.default_rng(0)
    sets = {}
    for i in range(12):
        visual, text = rng.random(2)
        gain = {"coop": 1 - visual, "vpt_shallow": text**2, "vpt_deep": rng.random(), "upt": 0.1}
        accuracy = {"zero_shot": {"mean": 0.2}} | {m: {"mean": 0.2 + g} for m, g in gain.items()}
        sets[str(i)] = {"visual_variance": visual, "text_variance": text, "variety": visual, "apart": i,
                        "gain": gain, "test_accuracy": accuracy}  # fmt: skip
    found = relations(sets)
    assert found["gain"]["coop"]["visual_variance"]["pearson"]["r"] == -1
    assert found["gain"]["coop"]["visual_variance"]["pearson"]["p"] < 0.01
    rank = found["gain"]["vpt_shallow"]["text_variance"]["spearman"]
    assert rank["r"] == rank["interval"][1] == 1
    assert found["gain"]["upt"]["text_variance"]["spearman"]["r"] is None
    said = [line.split(": ")[1].split(" (")[0] for line in found["reading"]]
    assert said == ["holds here", "holds here", "not told from chance here"]


def test_a_data_set_of_the_bench_is_measured_and_not_made_again(
    accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened_pictures: Counter
) -> None:
    monkeypatch.chdir(ROOT)  # where its base model lies
    few = {"few": upt_analysis.GRID["shape-10"] | {"train": 10, "val": 8, "test": 4}}
    monkeypatch.setattr(upt_analysis, "GRID", few)
    methods = {name: {"name": name} for name in ("zero_shot", "lp_plus_plus")}
    found = upt_analysis.measure("few", methods, tmp_path, accelerator)
    assert 0 < found["visual_variance"] < 0.3 < found["text_variance"] < 0.6
    assert 0 <= found["of_training"]["blend"] <= 1
    gain = found["test_accuracy"]["lp_plus_plus"]["mean"] - found["test_accuracy"]["zero_shot"]["mean"]
    assert found["gain"] == {"lp_plus_plus": pytest.approx(gain)}
    assert len(set(found["split_hashes"])) == 3
    opened_pictures.clear()
    assert upt_analysis.measure("few", methods, tmp_path, accelerator) == found
    assert not opened_pictures
