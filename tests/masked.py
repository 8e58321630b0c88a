"""Small pictures with masks of two rectangles, in folders."""

from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 30, 40
BOXES = [(2, 3, 12, 9), (20, 10, 31, 25)]
"""Two rectangles in each picture, as xyxy."""


def draw(path: Path, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), (20 * (number % 10), 100 + number // 10, 50)).save(path)


def mask(path: Path, values: tuple[int, ...] = (255, 255), **settings: object) -> None:
    """A mask with a value for each of `BOXES`."""
    pixels = np.zeros((HEIGHT, WIDTH), np.uint16 if max(values) > 255 else np.uint8)
    for (x1, y1, x2, y2), value in zip(BOXES, values):
        pixels[y1:y2, x1:x2] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **settings)


def folders(source: Path, values: tuple[int, ...] = (255, 255), suffix: str = ".png") -> Path:
    for i in range(8):
        draw(source / f"images/{i}.jpg", i)
        mask(source / f"masks/{i}{suffix}", values)
    return source
