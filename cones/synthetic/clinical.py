"""Scenes with the look of CT and MR, to pretrain on: base shapes in grey among organs and vessels, at many windows.

They hold no lesion of `volumes`: a detector learns from them to see grey shapes in bodies and noise, no more.
"""

import numpy as np

from cones.synthetic.drawing import coverage, outline
from cones.synthetic.things import Look, Thing, behind, paint
from cones.synthetic.world import STREAMS, Scene, on_ground, seen_whole, with_article

TONES = {"white": 0.9, "grey": 0.5, "black": 0.08}
TEXTURES = ("plain", "plain", "plain", "grainy", "shaded", "banded", "dotted", "striped")
LEAST_CONTRAST = 0.17
"""Between a thing's tone and what is where it is drawn."""
RADII = (0.055, 0.18)
"""Of a thing, as shares of the picture's side."""


def clinical_scene(rng: np.random.Generator, size: int, names: list[str]) -> Scene:
    """Draw a body of `size` x `size` pixels, the same in all three channels, that holds a shape for each of `names`."""
    canvas, cavities = _body(rng, size)
    things: list[Thing] = []
    for name in names:
        radius = rng.uniform(*RADII) * size
        at = rng.uniform(0.15, 0.85, 2)
        if cavities and rng.random() < 0.5:
            at = np.clip(rng.choice(cavities) + rng.normal(0, 0.08, 2), 0.1, 0.9)
        at = at * size
        around = canvas[int(at[1]) - 3 : int(at[1]) + 4, int(at[0]) - 3 : int(at[0]) + 4].mean()
        told = [c for c, tone in TONES.items() if abs(tone - around) > LEAST_CONTRAST]
        colour = str(rng.choice(told))
        look = Look(name, str(rng.choice(TEXTURES)), colour, "medium")
        thing = paint(canvas, look, np.array([TONES[colour]]), (float(at[0]), float(at[1])), radius, rng)
        things = [behind(t, thing.mask) for t in things]
        things.append(thing)
    phrases = " and ".join(with_article(t.phrase(rng)) for t in things)
    return Scene(_scanned(canvas, rng), tuple(things), phrases + on_ground("grey"), "grey")


def clinical_picture(seed: int, split: str, index: int, size: int, names: tuple[str, ...], objects: int) -> Scene:
    """The `index`-th clinical scene of a split with one to `objects` shapes, all of which can be seen."""
    stream = 2 * len(STREAMS) + STREAMS.index(split)  # apart from those of the world
    return seen_whole(clinical_scene, [seed, stream, index], index, size, names, objects)


def _body(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Air, a body, cavities, organs, bones and vessels, each a grey of its own: (size, size, 1) in [0, 1]; and the
    middles of the cavities, as shares of the side."""
    canvas = np.full((size, size, 1), rng.uniform(0, 0.08), np.float32)
    tissue = rng.uniform(0.3, 0.75)
    _ellipse(canvas, rng, (0.5, 0.5), rng.uniform(0.42, 0.7), rng.uniform(0.32, 0.6), tissue)
    cavities = []
    if rng.random() < 0.7:  # lungs, or the chambers of a heart or a brain
        inner = rng.choice([rng.uniform(0, 0.25), rng.uniform(0.6, 0.95)])
        apart = rng.uniform(0.15, 0.22)
        for x in (0.5 - apart, 0.5 + apart):
            cavities.append((x, float(rng.uniform(0.45, 0.55))))
            _ellipse(canvas, rng, cavities[-1], rng.uniform(0.1, 0.2), rng.uniform(0.18, 0.34), inner)
    for _ in range(int(rng.integers(0, 6))):
        (x, y), (wide, high) = rng.uniform(0.2, 0.8, 2), rng.uniform(0.04, 0.2, 2)
        _ellipse(canvas, rng, (x, y), wide, high, tissue + rng.normal(0, 0.08))
    for _ in range(int(rng.integers(0, 3))):
        (x, y), (wide, high) = rng.uniform(0.3, 0.8, 2), rng.uniform(0.03, 0.08, 2)
        _ellipse(canvas, rng, (x, y), wide, high, rng.uniform(0.8, 1))
    _vessels(canvas, rng, rng.uniform(0.4, 0.95))
    return canvas, cavities


def _ellipse(
    canvas: np.ndarray, rng: np.random.Generator, at: tuple[float, float], wide: float, high: float, tone: float
) -> None:
    """A lump, `at` and of half axes in shares of the side, with an outline of its own."""
    side = canvas.shape[0]
    ((points, _),) = outline("blob", rng)
    round_ = points / np.linalg.norm(points, axis=1, keepdims=True)
    smooth = rng.uniform(0.5, 6)
    lump = (points + smooth * round_) / (0.8 + smooth)  # a blob's radius is some 0.8
    parts = [(lump * (wide / max(wide, high), high / max(wide, high)), 1)]
    radius = max(wide, high) * side
    alpha = coverage(parts, canvas.shape[:2], (at[0] * side, at[1] * side), radius, rng.uniform(-0.3, 0.3))
    canvas += alpha[..., None] * (np.float32(tone) - canvas)


def _vessels(canvas: np.ndarray, rng: np.random.Generator, tone: float) -> None:
    """Threads that wander, a pixel to four wide, and their cross sections."""
    from PIL import Image, ImageDraw

    side = canvas.shape[0]
    drawn = Image.new("L", (side, side))
    pen = ImageDraw.Draw(drawn)
    for _ in range(int(rng.integers(0, 14))):
        at, way = rng.uniform(0.2, 0.8, 2) * side, rng.normal(0, 1, 2)
        width, points = rng.uniform(1, 4), []
        for _ in range(int(rng.integers(2, 16))):
            points.append(tuple(at.tolist()))
            way += rng.normal(0, 0.5, 2)
            at = at + 3 * way / np.linalg.norm(way)
        pen.line(points, fill=255, width=round(width))
    for _ in range(int(rng.integers(0, 10))):
        (x, y), r = rng.uniform(0.2, 0.8, 2) * side, rng.uniform(0.8, 2.5)
        pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
    canvas += (np.asarray(drawn, np.float32)[..., None] / 255) * (np.float32(tone) - canvas)


def _scanned(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The window, blur and noise of a scanner; (H, W, 1) in, uint8 (H, W, 3) out."""
    from scipy.ndimage import gaussian_filter

    grey = gaussian_filter(canvas[..., 0], rng.uniform(0.3, 1.0))
    grey = (grey - 0.5) * rng.uniform(0.75, 1.15) + 0.5 + rng.uniform(-0.07, 0.07)
    grey += rng.standard_normal(grey.shape, dtype=np.float32) * rng.uniform(0.005, 0.06)
    return np.repeat((np.clip(grey, 0, 1) * 255).astype(np.uint8)[..., None], 3, 2)
