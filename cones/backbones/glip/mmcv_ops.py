"""mmdet without compiling: the operators of `mmcv._ext` that GLIP, its losses and a mask head use, in plain PyTorch.

`mmcv-lite` has no compiled module, and full mmcv no wheel for today's PyTorch. Call `install()` before mmdet is
imported. Gradients come from autograd. Places in a picture are computed in float32 or wider, in half precision too.
"""

import importlib
import importlib.util
import math
import pickle
import sys
import time
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cones.common.errors import BackboneError

ORIGIN = "cones.backbones.glip.mmcv_ops"
"""What the stand-in's `__spec__` names as its origin."""

BOXES_AT_ONCE, ROIS_AT_ONCE = 256, 64
"""Boxes that `nms` compares with all others at once, and RoIs of one picture pooled at once: they bound memory only."""

YAPF_TRIES = 50

Pair = int | tuple[int, int]


def install() -> None:
    """Let `mmcv.ops`, and with it mmdet, be imported without compiled code; a second call changes nothing.

    Where a compiled `mmcv._ext` can be found, nothing is done at all.
    """
    _import_yapf()
    spec = importlib.util.find_spec("mmcv._ext")
    if spec is not None and spec.origin != ORIGIN:
        return
    sys.modules.setdefault("mmcv._ext", _stand_in())
    package = importlib.import_module("mmcv.ops")
    # mmcv's own functions wrap kernels that autograd cannot look into. Its layers look these names up as they run,
    # and mmdet copies them when imported, which without the stand-in could not have happened before.
    replaced: dict[str, Callable[..., Tensor]] = {
        "modulated_deform_conv": modulated_deform_conv2d,
        "roi_align": roi_align,
        "focal_loss": sigmoid_focal_loss,
    }
    for file, function in replaced.items():
        for module in (package, sys.modules[f"mmcv.ops.{file}"]):
            setattr(module, function.__name__, function)


def _import_yapf() -> None:
    """Import yapf, which mmengine needs, again and again for some seconds where its cache cannot be read.

    Its first import on a machine puts its grammar's pickle in place before it is written, and a process beside it
    reads an empty file.
    """
    for _ in range(YAPF_TRIES):
        try:
            importlib.import_module("yapf")
        except (EOFError, pickle.UnpicklingError):
            time.sleep(0.1)
        else:
            return
    importlib.import_module("yapf")


def _stand_in() -> Any:
    """Make the module that answers for `mmcv._ext`: `nms`, and a function that raises for every other name."""
    module = importlib.util.module_from_spec(ModuleSpec("mmcv._ext", loader=None, origin=ORIGIN))
    vars(module).update(nms=nms, __getattr__=_missing)
    return module


def _missing(name: str) -> Callable[..., NoReturn]:
    if name.startswith("__"):  # what Python asks of any module, such as `__path__` and `__file__`
        raise AttributeError(name)

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise BackboneError(
            f"the operator `{name}` is not among those that cones has without compiling; full mmcv 2.1.0 has it: "
            "build it for this PyTorch, and it is used instead"
        )

    return refuse


def nms(
    bboxes: Float[Tensor, "n 4"], scores: Float[Tensor, " n"], iou_threshold: float, offset: int
) -> Int[Tensor, " kept"]:
    """Keep each box that overlaps no kept box of a higher score by an IoU above `iou_threshold`.

    `bboxes` are xyxy, and `offset` is added to their widths and heights (1 where corners are whole pixels, else 0).
    Returns indices by falling score, equal scores in the order given, on the boxes' device.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes = _wide(bboxes.detach()[order])
    gone = np.zeros(len(boxes), dtype=bool)
    kept = []
    # The greedy choice is a chain of dependent steps: the device compares the pairs, the CPU walks.
    for start in range(0, len(boxes), BOXES_AT_ONCE):
        suppresses = _overlap(boxes[start : start + BOXES_AT_ONCE], boxes[start:], iou_threshold, offset)
        for i, row in enumerate(suppresses.cpu().numpy(), start):
            if not gone[i]:
                kept.append(i)
                gone[start:] |= row
    return order[torch.tensor(kept, dtype=torch.long, device=order.device)]


def _overlap(
    some: Float[Tensor, "m 4"], boxes: Float[Tensor, "n 4"], iou_threshold: float, offset: int
) -> Bool[Tensor, "m n"]:
    """Whether the IoU of two boxes is above the threshold, without a division: two empty boxes do not overlap."""
    x1, y1, x2, y2 = some[:, :, None].unbind(1)
    wide = (torch.minimum(x2, boxes[:, 2]) - torch.maximum(x1, boxes[:, 0]) + offset).clamp_(min=0)
    high = (torch.minimum(y2, boxes[:, 3]) - torch.maximum(y1, boxes[:, 1]) + offset).clamp_(min=0)
    shared = wide.mul_(high)
    area = (boxes[:, 2] - boxes[:, 0] + offset) * (boxes[:, 3] - boxes[:, 1] + offset)
    union = (x2 - x1 + offset) * (y2 - y1 + offset) + area - shared
    return shared > iou_threshold * union


def modulated_deform_conv2d(
    x: Float[Tensor, "b c h w"],
    offset: Float[Tensor, "b _ _ _"],
    mask: Float[Tensor, "b _ _ _"],
    weight: Float[Tensor, "o _ kh kw"],
    bias: Float[Tensor, " o"] | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    deform_groups: int = 1,
) -> Float[Tensor, "b o ho wo"]:
    """Convolve with each tap moved by an offset and weighted by a mask of its own (DCNv2, arXiv:1811.11168, eq. 1).

    As in mmcv's operator, each picture's offsets are read as flat memory, (deform_groups, kh * kw, 2, ho, wo) with y
    before x in pixels, and its mask as (deform_groups, kh * kw, ho, wo). So maps of a larger pyramid level are taken,
    their first values used: GLIP's DyHead relies on it. Beyond the border a picture is zero. All is cast to the
    offset's type, which the answer has.

    Raises: ValueError if the kernel does not fit the picture, or a map holds fewer values than the output needs.
    """
    batch, channels, *size = x.shape
    kernel, taps = tuple(weight.shape[2:]), weight.shape[2:].numel()
    steps = _pair(stride), _pair(padding), _pair(dilation)
    out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(size, kernel, *steps)]
    if min(out) < 1:
        raise ValueError(f"a kernel {kernel} does not fit a picture {tuple(size)}: the output would be {tuple(out)}")
    cells = out[0] * out[1]
    moves = _flat("offset", offset, (deform_groups, taps, 2, cells)).permute(0, 4, 2, 1, 3)
    shares = _flat("mask", mask.type_as(offset), (deform_groups, taps, cells)).permute(0, 3, 2, 1)
    with torch.autocast(x.device.type, enabled=False):
        at = _wide(moves) + _grid(kernel, out, *steps, device=x.device)[:, :, None]
        # (B * cells * taps, C) -> (groups, B * cells, taps * C / groups), a view where groups is 1
        columns = _sample(x.type_as(offset), at, _wide(shares)).type_as(offset)
        columns = columns.view(batch * cells, taps, groups, -1).permute(2, 0, 1, 3).reshape(groups, batch * cells, -1)
        filters = weight.type_as(offset).view(groups, -1, channels // groups, taps).permute(0, 3, 2, 1)
        result = torch.bmm(columns, filters.reshape(groups, columns.shape[2], -1)).transpose(0, 1).flatten(1)
        result = result if bias is None else result + bias.type_as(offset)
        return result.view(batch, cells, -1).transpose(1, 2).contiguous().view(batch, -1, *out)


def _flat(name: str, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Read the first values of each picture's map in another shape, as a pointer would."""
    need, flat = math.prod(shape), values.flatten(1)
    if flat.shape[1] < need:
        raise ValueError(f"a picture's {name} map must hold {need} values, got {tuple(values.shape[1:])}")
    return flat[:, :need].unflatten(1, shape)


def _grid(
    kernel: Sequence[int], out: Sequence[int], *steps: Sequence[int], device: torch.device
) -> Int[Tensor, "cells taps 2"]:
    """Where a plain convolution of this stride, padding and dilation reads: y and x in pixels."""
    y, x = (
        torch.arange(n, device=device)[:, None] * s - p + torch.arange(k, device=device) * d
        for n, k, s, p, d in zip(out, kernel, *steps)
    )
    both = torch.broadcast_tensors(y[:, None, :, None], x[None, :, None, :])
    return torch.stack(both, -1).reshape(math.prod(out), -1, 2)


def _sample(
    x: Float[Tensor, "b c h w"], at: Float[Tensor, "b cells taps g 2"], shares: Float[Tensor, "b cells taps g"]
) -> Float[Tensor, "_ width"]:
    """Read each of `g` channel groups at its own places, bilinearly, times its shares: (b * cells * taps * g, c / g).

    A bag of four rows of a table of pixels. `grid_sample` and a product with the shares take 1.6 times as long (256
    channels, 100 x 167, CPU) and keep every sample for the gradient; and their places are rounded as they are
    normalised, so that a tap on a whole pixel has now the left, now the right slope.
    """
    batch, _, height, width = x.shape
    groups = at.shape[3]
    table = _wide(x).unflatten(1, (groups, -1)).permute(0, 1, 3, 4, 2).reshape(batch * groups * height * width, -1)
    rows, row_shares = _neighbours(at[..., 0], height)
    columns, column_shares = _neighbours(at[..., 1], width)
    first = torch.arange(batch * groups, device=x.device).view(batch, 1, 1, groups, 1, 1) * (height * width)
    pixels = first + rows[..., :, None] * width + columns[..., None, :]
    weights = (row_shares * shares[..., None])[..., :, None] * column_shares[..., None, :]
    return F.embedding_bag(pixels.reshape(-1, 4), table, mode="sum", per_sample_weights=weights.reshape(-1, 4))


def _neighbours(at: Float[Tensor, "*n"], size: int) -> tuple[Int[Tensor, "*n 2"], Float[Tensor, "*n 2"]]:
    """The pixels on both sides of a place along one axis, and the share of each; outside the picture it is 0."""
    low = at.detach().floor()
    both = torch.stack([low, low + 1], -1)
    inside = (both >= 0) & (both < size) & (at > -1)[..., None]
    share = at - low
    return both.long().clamp(0, size - 1), torch.stack([1 - share, share], -1) * inside


def roi_align(
    x: Float[Tensor, "b c h w"],
    rois: Float[Tensor, "r 5"],
    output_size: Pair,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    pool_mode: str = "avg",
    aligned: bool = True,
) -> Float[Tensor, "r c oh ow"]:
    """Average bilinear samples in each bin of each RoI (Mask R-CNN, arXiv:1703.06870, section 3).

    A RoI is the index of its picture and xyxy, which `spatial_scale` brings to pixels of `x`. `sampling_ratio` is the
    samples a bin has along each axis; 0 takes one a pixel, rounded up. `aligned` shifts by half a pixel, so that
    pixels are read at their centres; without it a RoI is at least one pixel wide and high.

    A bin's average is an average of rows of averages of columns: two products with small matrices, which keep nothing
    but those matrices for the gradient.

    Raises: BackboneError for the pooling mode `max`.
    """
    if pool_mode != "avg":
        raise BackboneError(f"roi_align has the pooling mode `avg` without compiling, got `{pool_mode}`")
    (high, wide), channels, width = _pair(output_size), x.shape[1], x.shape[3]
    with torch.autocast(x.device.type, enabled=False):
        pixels = _wide(x).transpose(1, 2).flatten(2)  # (B, H, C * W)
        left, top, right, bottom = (rois.detach()[:, 1:].to(pixels) * spatial_scale - 0.5 * aligned).unbind(1)
        rows = _averages(top, bottom, high, x.shape[2], sampling_ratio, aligned)
        columns = _averages(left, right, wide, width, sampling_ratio, aligned).transpose(1, 2)
        picture = rois[:, 0].long()
        order, pooled = picture.argsort(stable=True), []
        for pixel, own in zip(pixels, order.split(picture.bincount(minlength=len(x)).tolist())):
            for some in own.split(ROIS_AT_ONCE):
                lines = rows[some].flatten(0, 1) @ pixel  # (r * oh, C * W)
                pooled.append(torch.bmm(lines.view(len(some), high * channels, width), columns[some]))
        bins = torch.cat(pooled)[order.argsort()].view(len(rois), high, channels, wide)
        return bins.transpose(1, 2).contiguous().type_as(x)


def _averages(
    start: Float[Tensor, " r"], end: Float[Tensor, " r"], bins: int, size: int, ratio: int, aligned: bool
) -> Float[Tensor, "r bins size"]:
    """The share that each pixel of one axis has in each bin between `start` and `end`."""
    length = end - start if aligned else (end - start).clamp(min=1)
    step = (length / bins)[:, None, None]
    count = torch.full_like(step, ratio) if ratio > 0 else step.ceil().clamp(min=0)
    most = ratio if ratio > 0 else int(max(count.flatten().tolist(), default=0))
    sample = torch.arange(most, device=start.device)
    bin_ = torch.arange(bins, device=start.device)[:, None]
    at = start[:, None, None] + bin_ * step + (sample + 0.5) * step / count.clamp(min=1)
    counts = (sample < count) & (at >= -1) & (at <= size)
    at = at.clamp(0, size - 1)  # a sample up to a pixel outside is read at the border
    low = at.floor()
    shares = torch.zeros(len(start), bins, size, dtype=start.dtype, device=start.device)
    for pixel, share in ((low, 1 - (at - low)), (low + 1, at - low)):
        shares.scatter_add_(2, pixel.long().clamp(max=size - 1), share * counts / count.clamp(min=1))
    return shares


def sigmoid_focal_loss(
    logits: Float[Tensor, "n c"],
    target: Int[Tensor, " n"],
    gamma: float = 2.0,
    alpha: float = 0.25,
    weight: Float[Tensor, " c"] | None = None,
    reduction: str = "mean",
) -> Float[Tensor, "*n_c"]:
    """Binary cross-entropy that gives easy examples little weight (arXiv:1708.02002, eq. 5), in float32 or wider.

    `target` is each row's class, with c for the background; `weight` has a factor for the rows of each class, and
    then the background cannot occur. `mean` divides the sum by the rows, not by the elements.

    Raises: ValueError for another reduction.
    """
    logits = _wide(logits)
    hit = (target[:, None] == torch.arange(logits.shape[1], device=logits.device)).to(logits.dtype)
    right = logits * (2 * hit - 1)
    balance = alpha * hit + (1 - alpha) * (1 - hit)
    loss = -balance * torch.sigmoid(-right) ** gamma * F.logsigmoid(right)
    loss = loss if weight is None else loss * weight[target][:, None]
    match reduction:
        case "none":
            return loss
        case "mean":
            return loss.sum() / len(loss)
        case "sum":
            return loss.sum()
        case _:
            raise ValueError(f"reduction must be none, mean or sum, got `{reduction}`")


def _wide(values: Tensor) -> Tensor:
    """In float32, or in float64 if it came so."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value
