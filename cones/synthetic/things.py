"""Things of the generated world: what they are called, and how one is painted into a picture."""

import math
from dataclasses import dataclass, replace

import numpy as np

from cones.synthetic.drawing import coverage, outline, texture

# Glyphs share shapes and textures two by two, so neither alone tells them apart.
NOVEL = {
    "zorb": ("gear", "hatched"), "blick": ("gear", "zigzag"), "dax": ("hourglass", "hatched"),
    "wug": ("hourglass", "zigzag"), "fep": ("horseshoe", "hatched"), "toma": ("horseshoe", "zigzag"),
    "kiv": ("bolt", "hatched"), "modi": ("bolt", "zigzag"), "gorp": ("trefoil", "hatched"),
    "lurf": ("trefoil", "zigzag"),
}  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """One object of a scene. `box` is xyxy in absolute pixels; `mask` (H, W) bool shows what is not hidden.

    `pixels` counts those of its mask before anything was drawn over it.
    """

    name: str
    shape: str
    texture: str
    colour: str
    size: str
    box: tuple[float, float, float, float]
    mask: np.ndarray
    pixels: int

    def phrase(self, rng: np.random.Generator) -> str:
        """A noun phrase that tells each attribute or not; a glyph's name says its shape and texture already."""
        size = "" if self.size == "medium" else self.size
        pattern = "" if self.texture == "plain" or self.name in NOVEL else self.texture
        told = [word for word in (size, self.colour, pattern) if word and rng.random() < 0.4]
        return " ".join([*told, self.name])


@dataclass(frozen=True)
class Look:
    """What an object to be drawn is called: its name, texture, colour and size."""

    name: str
    texture: str
    colour: str
    size: str


def paint(
    canvas: np.ndarray, look: Look, tone: np.ndarray, at: tuple[float, float], radius: float, rng: np.random.Generator
) -> Thing:
    """Paint an object of a `tone` (C,) in [0, 1] onto `canvas` (H, W, C) in place, `at` (x, y) in pixels, turned a
    little."""
    x, y = at
    shape = NOVEL[look.name][0] if look.name in NOVEL else look.name
    angle = rng.uniform(-0.35, 0.35)
    left, top = int(max(x - 1.2 * radius, 0)), int(max(y - 1.2 * radius, 0))
    window = canvas[top : int(y + 1.2 * radius) + 1, left : int(x + 1.2 * radius) + 1]
    alpha = coverage(outline(shape, rng), window.shape[:2], (x - left, y - top), radius, angle)

    height, width = alpha.shape
    dx = (np.arange(width, dtype=np.float32)[None, :] + 0.5 - (x - left)) / radius
    dy = (np.arange(height, dtype=np.float32)[:, None] + 0.5 - (y - top)) / radius
    u, v = dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)
    first = np.clip(tone + rng.uniform(-0.06, 0.06, len(tone)), 0, 1)
    second = first * 0.6 if first.mean() > 0.3 else first * 0.5 + 0.35
    share = texture(look.texture, u, v, rng)[..., None]
    window += alpha[..., None] * (first * (1 - share) + second * share - window).astype(np.float32)

    mask = np.zeros(canvas.shape[:2], dtype=bool)
    mask[top : top + height, left : left + width] = alpha > 0.5
    return Thing(look.name, shape, look.texture, look.colour, look.size, _box(mask), mask, int(mask.sum()))


def _box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """The tightest xyxy box around a mask, in pixels; all zeros for an empty one."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return (0.0, 0.0, 0.0, 0.0)
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def behind(thing: Thing, front: np.ndarray) -> Thing:
    """The thing with what `front` hides taken away."""
    mask = thing.mask & ~front
    return replace(thing, box=_box(mask), mask=mask)
