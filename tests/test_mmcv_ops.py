"""mmcv's operators without compiling: closed forms, loops written from the definitions, and finite differences."""

import contextlib
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck

from cones.backbones.mmcv_ops import install, modulated_deform_conv2d, nms, roi_align, sigmoid_focal_loss
from cones.errors import BackboneError

ROOT = Path(__file__).parent.parent
EXACT = {"atol": 1e-11, "rtol": 1e-9}


@pytest.fixture(scope="module")
def ops() -> ModuleType:
    install()
    import mmcv.ops

    return mmcv.ops


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def run(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def bilinear(picture: list[list[float]], y: float, x: float) -> float:
    """The value between four pixels, those outside counted as zero."""
    value = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < len(picture) and 0 <= column < len(picture[0]):
                value += (1 - abs(y - row)) * (1 - abs(x - column)) * picture[row][column]
    return value


def deform_by_hand(
    x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, s: int, p: int, d: int, g: int, dg: int
) -> Tensor:
    """The operator from its definition, with pointer arithmetic into each picture's offsets and masks."""
    batch, channels, height, width = x.shape
    filters, per_group, kh, kw = weight.shape
    high, wide = (height + 2 * p - d * (kh - 1) - 1) // s + 1, (width + 2 * p - d * (kw - 1) - 1) // s + 1
    out = torch.zeros(batch, filters, high, wide, dtype=x.dtype)
    for b in range(batch):
        moves, shares = offset[b].flatten().tolist(), mask[b].flatten().tolist()
        pictures, cells = x[b].tolist(), high * wide
        for f in range(filters):
            for row in range(high):
                for column in range(wide):
                    total, cell = bias[f].item(), row * wide + column
                    for j in range(per_group):
                        c = f // (filters // g) * per_group + j
                        for k in range(kh * kw):
                            tap = c // (channels // dg) * kh * kw + k
                            y = row * s - p + k // kw * d + moves[2 * tap * cells + cell]
                            z = column * s - p + k % kw * d + moves[(2 * tap + 1) * cells + cell]
                            value = bilinear(pictures[c], y, z) * shares[tap * cells + cell]
                            total += weight[f, j, k // kw, k % kw].item() * value
                    out[b, f, row, column] = total
    return out


def deformable(
    batch: int, channels: int, size: tuple[int, int], filters: int, kernel: tuple[int, int], maps: tuple[int, int],
    groups: int = 1, deform_groups: int = 1,
) -> list[Tensor]:  # fmt: skip
    """Random double arguments: picture, offsets, mask, weight, bias."""
    taps = math.prod(kernel) * deform_groups
    options = {"dtype": torch.double}
    return [
        torch.randn(batch, channels, *size, **options),
        1.5 * torch.randn(batch, 2 * taps, *maps, **options),
        torch.rand(batch, taps, *maps, **options),
        torch.randn(filters, channels // groups, *kernel, **options),
        torch.randn(filters, **options),
    ]


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups", "deform_groups"),
    [(1, 1, 1, 1, 1), (2, 1, 1, 1, 1), (1, 2, 2, 2, 1), ((2, 1), (0, 2), (1, 2), 1, 2), (1, 1, 1, 4, 2)],
)
def test_without_offsets_it_is_a_convolution(
    stride: Any, padding: Any, dilation: Any, groups: int, deform_groups: int
) -> None:
    x, weight, bias = torch.randn(2, 8, 7, 9), torch.randn(4, 8 // groups, 3, 3), torch.randn(4)
    expected = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    offset = torch.zeros(2, deform_groups * 18, *expected.shape[2:])
    mask = torch.ones(2, deform_groups * 9, *expected.shape[2:])
    ours = modulated_deform_conv2d(x, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    assert ours.is_contiguous()


def test_whole_offsets_read_a_shifted_picture() -> None:
    x, weight = torch.randn(2, 3, 6, 5), torch.randn(4, 3, 3, 3)
    offset = torch.tensor([1.0, -2.0]).repeat(9)[None, :, None, None].expand(2, -1, 6, 5)
    shifted = F.pad(x, (4, 4, 4, 4)).roll((-1, 2), (2, 3))[:, :, 3:-3, 3:-3]
    ours = modulated_deform_conv2d(x, offset, torch.full((2, 9, 6, 5), 0.5), weight, None, 1, 1)
    torch.testing.assert_close(ours, 0.5 * F.conv2d(shifted, weight), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "kernel", "maps", "settings"),
    [
        ((4, 5), (3, 3), (4, 5), (1, 1, 1, 1, 1)),
        ((4, 3), (3, 3), (7, 6), (1, 1, 1, 1, 1)),  # GLIP: offsets of a larger level, read as flat memory
        ((5, 6), (3, 3), (4, 4), (2, 1, 1, 1, 2)),
        ((5, 4), (2, 3), (9, 9), (1, 2, 2, 2, 4)),
        ((1, 1), (3, 3), (2, 2), (1, 1, 1, 4, 1)),  # one pixel
    ],
)
def test_deformable_convolution_is_its_definition(
    size: tuple[int, int], kernel: tuple[int, int], maps: tuple[int, int], settings: tuple[int, ...]
) -> None:
    tensors = deformable(2, 4, size, 4, kernel, maps, *settings[3:])
    ours = modulated_deform_conv2d(*tensors, *settings)
    torch.testing.assert_close(ours, deform_by_hand(*tensors, *settings), **EXACT)


def test_gradients_of_the_deformable_convolution() -> None:
    tensors = [t.requires_grad_() for t in deformable(1, 4, (3, 4), 2, (3, 2), (4, 5), 2, 2)]
    assert gradcheck(lambda *t: modulated_deform_conv2d(*t, 1, 1, 1, 2, 2), tensors)


def test_a_tap_on_a_whole_pixel_has_the_slope_to_the_next() -> None:
    """Offsets begin at zero, where the slopes to both sides differ; mmcv takes the right one, and none at -1."""
    x, offset = torch.randn(1, 1, 4, 5), torch.zeros(1, 2, 6, 7, requires_grad=True)
    modulated_deform_conv2d(x, offset, torch.ones(1, 1, 6, 7), torch.ones(1, 1, 1, 1), None, 1, 1).sum().backward()
    assert offset.grad is not None
    padded = F.pad(x[0, 0], (0, 1, 0, 1))
    assert torch.equal(offset.grad[0, 0, 1:-1, 1:-1], (padded[1:] - padded[:-1])[:, :-1])
    assert torch.equal(offset.grad[0, 1, 1:-1, 1:-1], (padded[:, 1:] - padded[:, :-1])[:-1])
    offset.grad[:, :, 1:-1, 1:-1] = 0
    assert not offset.grad.any()


@pytest.mark.parametrize("trained", [True, False])
def test_a_frozen_convolution_keeps_no_unfolded_input(trained: bool) -> None:
    kept: list[int] = []
    x, offset = torch.randn(1, 32, 10, 10, requires_grad=True), torch.randn(1, 18, 10, 10, requires_grad=True)
    weight, mask = torch.randn(32, 32, 3, 3, requires_grad=trained), offset[:, :9].sigmoid()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        modulated_deform_conv2d(x, offset, mask, weight, None, 1, 1)
    unfolded = 9 * x.numel()
    assert (max(kept) == unfolded) is trained
    assert max(kept) <= unfolded


@pytest.mark.parametrize(
    ("size", "offset", "mask", "message"),
    [
        ((1, 2), (18, 4, 4), (9, 4, 4), r"a kernel \(3, 3\) does not fit a picture \(1, 2\)"),
        ((4, 4), (18, 1, 3), (9, 2, 2), r"offset map must hold 72 values, got \(18, 1, 3\)"),
        ((4, 4), (18, 2, 2), (9, 1, 3), r"mask map must hold 36 values, got \(9, 1, 3\)"),
    ],
)
def test_maps_too_small_are_refused(
    size: tuple[int, ...], offset: tuple[int, ...], mask: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        modulated_deform_conv2d(
            torch.ones(1, 2, *size), torch.ones(1, *offset), torch.ones(1, *mask), torch.ones(1, 2, 3, 3)
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_values_and_not_places(dtype: torch.dtype) -> None:
    """As mmcv, all follows the offset's type; a place beyond 256 pixels would be lost in bfloat16."""
    x, offset = torch.randn(1, 4, 4, 400), torch.randn(1, 18, 4, 400).to(dtype)
    mask, weight, bias = torch.rand(1, 9, 4, 400), torch.randn(4, 4, 3, 3), torch.randn(4)
    exact = modulated_deform_conv2d(x, offset.float(), mask, weight, bias, 1, 1)
    ours = modulated_deform_conv2d(x, offset, mask, weight, bias, 1, 1)
    assert ours.dtype == dtype
    assert torch.equal(ours, modulated_deform_conv2d(x.to(dtype), offset, mask, weight, bias, 1, 1))
    assert (ours.float() - exact).abs().max() < exact.abs().max() * 2 * torch.finfo(dtype).eps
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(modulated_deform_conv2d(x, offset.float(), mask, weight, bias, 1, 1), exact)


def test_autocast_trains_mmcvs_layer(ops: ModuleType) -> None:
    layer, offsets = ops.ModulatedDeformConv2d(4, 6, 3, padding=1), torch.nn.Conv2d(4, 27, 3, padding=1)
    x = torch.randn(2, 4, 5, 5)

    def step() -> Tensor:
        maps = offsets(x)
        return layer(x, maps[:, :18], maps[:, 18:].sigmoid())

    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = step()
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), step(), atol=0.05, rtol=0.05)
    half.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in [*layer.parameters(), *offsets.parameters()])


def test_tensors_are_made_where_the_input_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, which mixes with the CPU as little as a GPU does; autocast alone does not know it."""
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: contextlib.nullcontext())
    with torch.device("meta"):
        tensors = torch.ones(2, 4, 5, 5), torch.ones(2, 18, 7, 7), torch.ones(2, 9, 7, 7), torch.ones(6, 4, 3, 3)
        logits, target = torch.ones(3, 4), torch.ones(3, dtype=torch.long)
    assert modulated_deform_conv2d(*tensors, None, 1, 1).shape == (2, 6, 5, 5)
    assert sigmoid_focal_loss(logits, target).is_meta


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_answers_as_the_cpu() -> None:
    def gradients(device: str) -> list[Tensor]:
        torch.manual_seed(0)
        tensors = [t.float().to(device).requires_grad_() for t in deformable(2, 4, (8, 7), 6, (3, 3), (9, 9))]
        boxes = random_boxes(600).to(device)
        pooled = roi_align(tensors[0], torch.cat([torch.arange(600, device=device)[:, None] % 2, boxes / 10], 1), 7)
        loss = modulated_deform_conv2d(*tensors, 1, 1).square().mean() + pooled.square().mean()
        loss = loss + sigmoid_focal_loss(tensors[3].flatten(1), torch.arange(6, device=device))
        loss.backward()
        return [nms(boxes, boxes[:, 0], 0.5, 0).cpu(), *(t.grad.cpu() for t in tensors if t.grad is not None)]

    torch.testing.assert_close(gradients("cuda"), gradients("cpu"), atol=1e-4, rtol=1e-3)


def random_boxes(n: int) -> Tensor:
    corner = 50 * torch.rand(n, 2)
    return torch.cat([corner, corner + 40 * torch.rand(n, 2)], 1)


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
    start = time.process_time()
    nms(boxes, scores, 0.6, 0)
    assert time.process_time() - start < 0.5  # seconds; 0.005 where this was written


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
from cones.backbones import mmcv_ops
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


DYHEAD = """
from cones.backbones.mmcv_ops import install
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
