"""The generated world: captioned scenes with labels, boxes and masks, all from one seed.

*Base* concepts are what the built-in backbones are pretrained on. *Novel* concepts, the glyphs, have shapes,
textures and made-up names that pretraining never shows: a search is judged on them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageFilter

from cones.common.errors import DataError
from cones.synthetic.drawing import background, coverage, outline, texture

SHAPES = (
    "circle",
    "oval",
    "square",
    "triangle",
    "star",
    "cross",
    "ring",
    "crescent",
    "heart",
    "arrow",
    "flower",
    "blob",
)
TEXTURES = ("plain", "striped", "dotted", "checkered", "grainy", "shaded", "banded")
BACKGROUNDS = ("plain", "graded", "cloudy", "lined", "speckled")
COLOURS = {
    "red": (0.86, 0.15, 0.15), "orange": (0.95, 0.55, 0.12), "yellow": (0.95, 0.88, 0.2), "green": (0.2, 0.66, 0.28),
    "cyan": (0.2, 0.78, 0.82), "blue": (0.18, 0.32, 0.85), "purple": (0.5, 0.22, 0.68), "pink": (0.95, 0.6, 0.75),
    "brown": (0.48, 0.3, 0.16), "white": (0.95, 0.95, 0.95), "black": (0.08, 0.08, 0.08),
}  # fmt: skip
# Glyphs share shapes and textures two by two, so neither alone tells them apart.
NOVEL = {
    "zorb": ("gear", "hatched"), "blick": ("gear", "zigzag"), "dax": ("hourglass", "hatched"),
    "wug": ("hourglass", "zigzag"), "fep": ("horseshoe", "hatched"), "toma": ("horseshoe", "zigzag"),
    "kiv": ("bolt", "hatched"), "modi": ("bolt", "zigzag"), "gorp": ("trefoil", "hatched"),
    "lurf": ("trefoil", "zigzag"),
}  # fmt: skip
CAPTIONS = ("a photo of {}", "a picture of {}", "an image of {}", "a drawing of {}", "{}", "this is {}", "there is {}")

STREAMS = ("train", "val", "test", "pretrain")
LEAST_SHARE = 0.25
LEAST_PIXELS = 16
MOST_DRAWS = 1000


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
class Scene:
    """`image` (H, W, 3) uint8, the things in it from back to front, a caption that is true of it, and the colour of
    its background."""

    image: np.ndarray
    things: tuple[Thing, ...]
    caption: str
    ground: str


def with_article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def on_ground(colour: str) -> str:
    """What a caption says of a background."""
    return f" on a {colour} background"


def classes(vocabulary: str) -> tuple[str, ...]:
    """The class names of the `base` or the `novel` vocabulary."""
    return SHAPES if vocabulary == "base" else tuple(NOVEL)


def scene(rng: np.random.Generator, size: int, names: list[str]) -> Scene:
    """Draw one scene of `size` x `size` pixels that holds an object for each of `names`, in that order.

    A name is a base shape, drawn in any texture, or a glyph. Colour, size, place, turn and background are free.
    """
    ground = str(rng.choice(list(COLOURS)))
    tint = np.clip(np.array(COLOURS[ground]) * 0.6 + rng.uniform(0.0, 0.4), 0, 1)
    canvas = background(str(rng.choice(BACKGROUNDS)), tint, size, rng)
    others = [c for c in COLOURS if c != ground]
    things: list[Thing] = []
    for name in names:
        thing = _draw(canvas, name, str(rng.choice(others)), alone=len(names) == 1, rng=rng)
        things = [_behind(t, thing.mask) for t in things]
        things.append(thing)
    picture = _degrade(canvas, rng)
    told = " and ".join(with_article(t.phrase(rng)) for t in things)
    where = on_ground(ground) if rng.random() < 0.15 else ""
    return Scene(picture, tuple(things), str(rng.choice(CAPTIONS)).format(told) + where, ground)


def _draw(canvas: np.ndarray, name: str, colour: str, alone: bool, rng: np.random.Generator) -> Thing:
    """Paint an object onto `canvas` (H, W, 3) in place."""
    side = canvas.shape[0]
    shape, pattern = NOVEL[name] if name in NOVEL else (name, str(rng.choice(TEXTURES)))
    size = str(rng.choice(["small", "medium", "large"]))
    low, high = {"small": (0.19, 0.24), "medium": (0.27, 0.34), "large": (0.37, 0.45)}[size]
    radius = rng.uniform(low, high) * side * (1.0 if alone else 0.6)
    x, y = rng.uniform(radius * 0.9, side - radius * 0.9, 2)
    angle = rng.uniform(-0.35, 0.35)
    left, top = int(max(x - 1.2 * radius, 0)), int(max(y - 1.2 * radius, 0))
    window = canvas[top : int(y + 1.2 * radius) + 1, left : int(x + 1.2 * radius) + 1]
    alpha = coverage(outline(shape, rng), window.shape[:2], (x - left, y - top), radius, angle)

    height, width = alpha.shape
    dx = (np.arange(width, dtype=np.float32)[None, :] + 0.5 - (x - left)) / radius
    dy = (np.arange(height, dtype=np.float32)[:, None] + 0.5 - (y - top)) / radius
    u, v = dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)
    first = np.clip(np.array(COLOURS[colour]) + rng.uniform(-0.06, 0.06, 3), 0, 1)
    second = first * 0.6 if first.mean() > 0.3 else first * 0.5 + 0.35
    share = texture(pattern, u, v, rng)[..., None]
    window += alpha[..., None] * (first * (1 - share) + second * share - window).astype(np.float32)

    mask = np.zeros(canvas.shape[:2], dtype=bool)
    mask[top : top + height, left : left + width] = alpha > 0.5
    return Thing(name, shape, pattern, colour, size, _box(mask), mask, int(mask.sum()))


def _box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """The tightest xyxy box around a mask, in pixels; all zeros for an empty one."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return (0.0, 0.0, 0.0, 0.0)
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def _behind(thing: Thing, front: np.ndarray) -> Thing:
    """The thing with what `front` hides taken away."""
    mask = thing.mask & ~front
    return replace(thing, box=_box(mask), mask=mask)


def _degrade(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Colour cast, light, blur and noise as a camera adds them; float in, uint8 out."""
    cast = rng.uniform(0.88, 1.12, 3) * rng.uniform(0.8, 1.1)
    picture = canvas * cast.astype(np.float32)
    picture += rng.standard_normal(picture.shape, dtype=np.float32) * rng.uniform(0, 0.05)
    pixels = (np.clip(picture, 0, 1) * 255).astype(np.uint8)
    if rng.random() < 0.3:
        blurred = Image.fromarray(pixels).filter(ImageFilter.BoxBlur(rng.uniform(0.3, 1.0)))
        pixels = np.asarray(blurred)
    return pixels


def picture(seed: int, split: str, index: int, size: int, name: str) -> Scene:
    """The `index`-th one-object scene of a split: the same one whatever else is drawn."""
    return scene(np.random.default_rng([seed, STREAMS.index(split), index]), size, [name])


def scenes_picture(seed: int, split: str, index: int, size: int, names: Sequence[str], objects: int) -> Scene:
    """The `index`-th scene of a split with one to `objects` things, the same one whatever else is drawn.

    The classes take turns, and the others in a scene are drawn at random, each at any depth. Every thing can be seen,
    so that the boxes and masks are the whole truth: a scene in which one shows less than LEAST_SHARE of itself, or
    fewer than LEAST_PIXELS pixels, is drawn again from the next stream. `DataError` after MOST_DRAWS of them.
    """
    stream = len(STREAMS) + STREAMS.index(split)  # apart from those of `picture`
    rng = np.random.default_rng([seed, stream, index])
    others = rng.choice(names, rng.integers(0, objects))
    shown = rng.permutation([names[index % len(names)], *others]).tolist()
    for draw in range(1, MOST_DRAWS + 1):
        drawn = scene(np.random.default_rng([seed, stream, index, draw]), size, shown)
        seen = [(thing.mask.sum(), thing.pixels) for thing in drawn.things]
        if all(pixels >= LEAST_PIXELS and pixels >= LEAST_SHARE * of for pixels, of in seen):
            return drawn
    raise DataError(
        f"{len(shown)} objects do not fit into {size} x {size} pixels so that each can be seen; lower `objects` or "
        "raise `size`"
    )
