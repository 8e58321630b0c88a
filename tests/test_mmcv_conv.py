"""mmcv's deformable convolution without compiling: its definition in loops, closed forms, finite differences."""

import contextlib
import math
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmcvs import EXACT, bilinear, random_boxes
from torch import Tensor
from torch.autograd import gradcheck

from cones.backbones.glip.mmcv_ops import modulated_deform_conv2d, nms, roi_align, sigmoid_focal_loss


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


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


@pytest.mark.gpu
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
