"""What the tests of mmcv's operators share: the operators in mmcv's place, and definitions as loops."""

import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from cones.backbones.glip.mmcv_ops import install

ROOT = Path(__file__).parent.parent
EXACT = {"atol": 1e-11, "rtol": 1e-9}


@pytest.fixture(scope="module")
def ops() -> ModuleType:
    install()
    import mmcv.ops

    return mmcv.ops


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


def random_boxes(n: int) -> Tensor:
    corner = 50 * torch.rand(n, 2)
    return torch.cat([corner, corner + 40 * torch.rand(n, 2)], 1)
