"""mmcv's other operators without compiling, and how they are installed."""

import cProfile
import importlib.metadata
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmcvs import EXACT, bilinear, random_boxes, run
from torch import Tensor
from torch.autograd import gradcheck

from cones.backbones.glip.mmcv_ops import install, modulated_deform_conv2d, nms, roi_align, sigmoid_focal_loss
from cones.common.errors import BackboneError


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def nms_by_hand(boxes: Tensor, scores: Tensor, threshold: float, offset: int) -> list[int]:
    kept: list[int] = []
    rows = boxes.double().tolist()
    for i in sorted(range(len(rows)), key=lambda i: -scores[i].item()):
        for j in kept:
            (a, b, c, d), (e, f, g, h) = rows[i], rows[j]
            shared = max(0.0, min(c, g) - max(a, e) + offset) * max(0.0, min(d, h) - max(b, f) + offset)
            union = (c - a + offset) * (d - b + offset) + (g - e + offset) * (h - f + offset) - shared
            if shared > threshold * union:
                break
        else:
            kept.append(i)
    return kept


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(("n", "threshold"), [(0, 0.5), (1, 0.5), (60, 0.3), (700, 0.6)])
def test_nms_is_greedy(n: int, threshold: float, offset: int) -> None:
    boxes, scores = random_boxes(n), torch.rand(n).mul(20).round() / 20  # many equal scores
    kept = nms(boxes, scores, threshold, offset)
    assert kept.tolist() == nms_by_hand(boxes, scores, threshold, offset)
    assert kept.dtype == torch.long
    assert n < 60 or 1 < len(kept) < n


def test_nms_keeps_boxes_at_the_threshold_and_empty_ones() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 1], [1, 0, 2, 1], [5, 5, 5, 5], [5, 5, 5, 5]])
    scores = torch.tensor([0.5, 0.9, 0.1, 0.1])
    assert nms(boxes, scores, 0.5, 0).tolist() == [1, 0, 2, 3]
    assert nms(boxes, scores, 0.49, 0).tolist() == [1, 2, 3]
    assert nms(boxes, scores, 0.5, 1).tolist() == [1, 2]
    assert nms(boxes.bfloat16(), scores.bfloat16(), 0.49, 0).tolist() == [1, 2, 3]


def test_nms_of_a_thousand_boxes_is_no_python_loop_over_pairs() -> None:
    boxes, scores = 20 * random_boxes(1000), torch.rand(1000)
    with cProfile.Profile() as profile:
        nms(boxes, scores, 0.6, 0)
    assert sum(entry.callcount for entry in profile.getstats()) < 20_000  # of 499,500 pairs


def test_mmcvs_batched_nms_keeps_classes_apart(ops: ModuleType) -> None:
    boxes, scores, classes = random_boxes(90), torch.rand(90), torch.arange(90) % 3
    detections, kept = ops.batched_nms(boxes, scores, classes, {"type": "nms", "iou_threshold": 0.4})
    expected = [
        own[i] for c in range(3) for own in [(classes == c).nonzero()[:, 0].tolist()]
        for i in nms_by_hand(boxes[own], scores[own], 0.4, 0)
    ]  # fmt: skip
    assert kept.tolist() == sorted(expected, key=lambda i: -scores[i].item())
    assert torch.equal(detections, torch.cat([boxes, scores[:, None]], 1)[kept])


def align_by_hand(x: Tensor, rois: Tensor, size: tuple[int, int], scale: float, ratio: int, aligned: bool) -> Tensor:
    """Mask R-CNN's pooling from its definition: each bin's samples one by one."""
    out = torch.zeros(len(rois), x.shape[1], *size, dtype=x.dtype)
    height, width = x.shape[2:]
    for r, (index, *box) in enumerate(rois.tolist()):
        left, top, right, bottom = (v * scale - 0.5 * aligned for v in box)
        extent = [bottom - top, right - left] if aligned else [max(bottom - top, 1), max(right - left, 1)]
        steps = [e / n for e, n in zip(extent, size)]
        counts = [ratio or max(math.ceil(step), 0) for step in steps]
        for c in range(x.shape[1]):
            picture = x[int(index), c].tolist()
            for i in range(size[0]):
                for j in range(size[1]):
                    for a in range(counts[0]):
                        for b in range(counts[1]):
                            y = top + steps[0] * (i + (a + 0.5) / counts[0])
                            z = left + steps[1] * (j + (b + 0.5) / counts[1])
                            if -1 <= y <= height and -1 <= z <= width:
                                y, z = min(max(y, 0), height - 1), min(max(z, 0), width - 1)
                                out[r, c, i, j] += bilinear(picture, y, z) / math.prod(counts)
    return out


ROIS = torch.tensor(
    [
        [1, 2.3, 1.1, 9.7, 6.2],
        [0, -3.0, -4.0, 30.0, 25.0],  # beyond the picture on all sides
        [1, 4.0, 4.0, 4.0, 4.0],  # empty
        [0, 5.2, 5.9, 3.1, 8.0],  # its sides swapped
        [1, 40.0, 40.0, 50.0, 50.0],  # outside
        [0, 0.0, 0.0, 16.0, 12.0],
    ],
    dtype=torch.double,
)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(("ratio", "scale"), [(0, 1.0), (0, 0.5), (2, 0.5)])
def test_roi_align_is_its_definition(ratio: int, scale: float, aligned: bool) -> None:
    x = torch.randn(2, 2, 6, 8, dtype=torch.double)
    ours = roi_align(x, ROIS, (3, 2), scale, ratio, "avg", aligned)
    torch.testing.assert_close(ours, align_by_hand(x, ROIS, (3, 2), scale, ratio, aligned), **EXACT)
    assert ours.is_contiguous()


def test_many_rois_of_one_picture_keep_their_order() -> None:
    x, rois = torch.randn(3, 2, 6, 8), torch.cat([torch.randint(0, 3, (300, 1)), random_boxes(300) / 10], 1)
    one_by_one = torch.cat([roi_align(x, roi[None], 2) for roi in rois])
    torch.testing.assert_close(roi_align(x, rois, 2), one_by_one)
    assert len({tuple(p.flatten().tolist()) for p in one_by_one}) == 300


def test_roi_align_of_a_ramp_gives_the_bins_centres() -> None:
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    pooled = roi_align(torch.stack([y, x])[None], torch.tensor([[0, 4.0, 2.0, 20.0, 17.0]]), (5, 4))
    assert pooled.shape == (1, 2, 5, 4)
    torch.testing.assert_close(pooled[0, 0, :, 0], 2 + 3 * (torch.arange(5) + 0.5) - 0.5)
    torch.testing.assert_close(pooled[0, 1, 0], 4 + 4 * (torch.arange(4) + 0.5) - 0.5)


def test_gradients_of_roi_align() -> None:
    x = torch.randn(2, 2, 4, 5, dtype=torch.double, requires_grad=True)
    assert gradcheck(lambda x: roi_align(x, ROIS, (2, 3), 0.5), [x])
    empty = roi_align(x, ROIS[:0], (2, 3))
    assert empty.shape == (0, 2, 2, 3)
    empty.sum().backward()  # a batch without objects trains the rest
    assert x.grad is not None
    assert not x.grad.any()


def test_roi_align_keeps_the_pictures_type(ops: ModuleType) -> None:
    x, rois = torch.randn(2, 3, 6, 8), ROIS.float()
    exact = ops.RoIAlign((3, 2), 0.5)(x, rois)
    torch.testing.assert_close(exact, roi_align(x, rois, (3, 2), 0.5))
    half = roi_align(x.bfloat16(), rois, (3, 2), 0.5)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, atol=0.02, rtol=0.02)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(roi_align(x, rois, (3, 2), 0.5), exact)
    with pytest.raises(BackboneError, match="pooling mode `avg` without compiling, got `max`"):
        ops.RoIAlign((3, 2), pool_mode="max")(x, rois)


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (1.5, 0.6)])
def test_focal_loss_is_its_formula(gamma: float, alpha: float) -> None:
    logits, target = 3 * torch.randn(5, 3, dtype=torch.double), torch.tensor([0, 2, 3, 1, 3])  # 3: background
    expected = torch.zeros(5, 3, dtype=torch.double)
    for i in range(5):
        for c in range(3):
            p = 1 / (1 + math.exp(-logits[i, c].item()))
            hit, miss = -alpha * (1 - p) ** gamma * math.log(p), -(1 - alpha) * p**gamma * math.log(1 - p)
            expected[i, c] = hit if target[i] == c else miss
    torch.testing.assert_close(sigmoid_focal_loss(logits, target, gamma, alpha, None, "none"), expected, **EXACT)
    torch.testing.assert_close(sigmoid_focal_loss(logits, target, gamma, alpha), expected.sum() / 5, **EXACT)
    weighted = sigmoid_focal_loss(logits[:2], target[:2], gamma, alpha, torch.tensor([1.0, 2, 3]).double(), "sum")
    torch.testing.assert_close(weighted, expected[0].sum() + 3 * expected[1].sum(), **EXACT)
    assert gradcheck(lambda x: sigmoid_focal_loss(x, target, gamma, alpha), [logits.requires_grad_()])


def test_focal_loss_in_half_precision_and_far_out() -> None:
    logits, target = torch.tensor([[-300.0, 300.0], [300.0, -300.0]], requires_grad=True), torch.tensor([0, 0])
    loss = sigmoid_focal_loss(logits.bfloat16(), target, reduction="none")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.tensor([[75.0, 225.0], [0.0, 0.0]]), rtol=0.01, atol=0)
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    with pytest.raises(ValueError, match="none, mean or sum, got `average`"):
        sigmoid_focal_loss(logits, target, reduction="average")


def test_focal_loss_is_mmdets_own(ops: ModuleType) -> None:
    from mmdet.models.losses import focal_loss

    logits, target, weight = torch.randn(7, 4), torch.randint(0, 5, (7,)), torch.rand(7)
    one_hot = F.one_hot(target, 5)[:, :4]
    for loss, labels in ((focal_loss.sigmoid_focal_loss, target), (focal_loss.py_sigmoid_focal_loss, one_hot)):
        value = loss(logits, labels, weight, avg_factor=3)
        expected = (sigmoid_focal_loss(logits, target, reduction="none") * weight[:, None]).sum() / 3
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize(
    ("call", "operator"),
    [
        (lambda ops: ops.RoIPool(2)(torch.ones(1, 1, 4, 4), torch.zeros(1, 5)), "roi_pool_forward"),
        (lambda ops: ops.soft_nms(random_boxes(3), torch.rand(3)), "softnms"),
    ],
)
def test_another_operator_is_named(ops: ModuleType, call: Callable[[ModuleType], Any], operator: str) -> None:
    with pytest.raises(BackboneError, match=f"the operator `{operator}` is not among .* full mmcv 2.1.0 has it"):
        call(ops)


def test_installing_twice_is_harmless(ops: ModuleType) -> None:
    extension = sys.modules["mmcv._ext"]
    install()
    assert sys.modules["mmcv._ext"] is extension is sys.modules["mmcv.ops.nms"].ext_module
    assert extension.__spec__ is not None
    assert not hasattr(extension, "__path__")
    assert ops.modulated_deform_conv2d is modulated_deform_conv2d
    assert ops.roi_align is roi_align
    assert ops.sigmoid_focal_loss is sigmoid_focal_loss


ASIDE = """
import sys
import mmcv
mmcv.__path__.append(sys.argv[1])
from cones.backbones.glip import mmcv_ops
mmcv_ops.install()
assert not {"mmcv._ext", "mmcv.ops"} & set(sys.modules)
import torch
import mmcv.ops
print(mmcv.ops.nms(torch.ones(1, 4), torch.ones(1), 0.5)[1].tolist(), mmcv.ops.roi_align is mmcv_ops.roi_align)
"""


def test_it_steps_aside_for_compiled_mmcv(tmp_path: Path) -> None:
    compiled = "import torch\ndef __getattr__(name): return lambda *a, **k: torch.tensor([0, 0, 0])\n"
    (tmp_path / "_ext.py").write_text(compiled)
    assert run(ASIDE, str(tmp_path)) == "[0, 0, 0] False"


FIRST_IMPORT = """
import sys
import threading
from pathlib import Path
from cones.backbones.glip import mmcv_ops
version = ".".join(map(str, sys.version_info))
cache = Path(sys.argv[1], "YAPF", sys.argv[2], f"Grammar-py{version}.pickle")
cache.parent.mkdir(parents=True)
cache.touch()
beside = threading.Timer(0.5, cache.unlink)
read = mmcv_ops.time.sleep
mmcv_ops.time.sleep = lambda seconds: (print("empty"), read(seconds))
beside.start()
mmcv_ops.install()
import mmcv.ops
print("read")
"""


def test_another_process_may_be_importing_for_the_first_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    lines = run(FIRST_IMPORT, str(tmp_path), importlib.metadata.version("yapf")).split()
    assert lines[0] == "empty"
    assert lines[-1] == "read"


DYHEAD = """
from cones.backbones.glip.mmcv_ops import install
install()
import torch
import mmdet.models
from mmdet.models.dense_heads.atss_vlfusion_head import Conv3x3Norm, DyConv
torch.manual_seed(0)
convolve = lambda i, o, stride: Conv3x3Norm(i, o, stride, use_dcn=True, norm_type=["gn", 4])
block = DyConv(convolve, 8, 8, use_dyfuse=True, use_dyrelu=True, use_dcn=True)
pyramid = [torch.randn(2, 8, n, n, requires_grad=True) for n in (9, 5, 3)]
out = block({"visual": pyramid, "lang": None})["visual"]
sum(level.square().sum() for level in out).backward()
assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())
assert block.offset.weight.grad.any() and all(level.grad.any() for level in pyramid)
print([tuple(level.shape) for level in out])
"""


def test_mmdets_dyhead_trains_with_offsets_of_a_larger_level() -> None:
    assert run(DYHEAD).splitlines()[-1] == "[(2, 8, 9, 9), (2, 8, 5, 5), (2, 8, 3, 3)]"
