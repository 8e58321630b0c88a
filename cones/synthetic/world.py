"""The generated world: captioned scenes with labels, boxes and masks, all from one seed.

*Base* concepts are what the built-in backbones are pretrained on. *Novel* concepts, the glyphs, have shapes,
textures and made-up names that pretraining never shows: a search is judged on them.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from cones.common.errors import DataError
from cones.synthetic.drawing import background
from cones.synthetic.narrowed import stream_of
from cones.synthetic.things import NOVEL, Look, Thing, behind, paint

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
CAPTIONS = ("a photo of {}", "a picture of {}", "an image of {}", "a drawing of {}", "{}", "this is {}", "there is {}")

STREAMS = ("train", "val", "test", "pretrain")
LEAST_SHARE = 0.25
LEAST_PIXELS = 16
MOST_DRAWS = 1000
MID_GREY = 127.5
DESCRIBED = 6
"""Classes that words describe: as many as there are textures beside the plain one, which no caption tells."""


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


def described(differ: Collection[str], seed: int) -> tuple[str, ...]:
    """DESCRIBED class names, each a colour, a texture and a shape, such as "red striped circle".

    Those words of them that `differ` names (`colour`, `texture`, `shape`) are different in each, and the others the
    same: the fewer differ, the nearer they lie to each other for a text encoder.
    """
    rng = np.random.default_rng([seed, len(STREAMS)])
    words = [rng.permutation(of)[:DESCRIBED].tolist() for of in (list(COLOURS), TEXTURES[1:], SHAPES)]  # none is plain
    differs = [kind in differ for kind in ("colour", "texture", "shape")]
    return tuple(" ".join(of[i if d else 0] for of, d in zip(words, differs)) for i in range(DESCRIBED))


def scene(rng: np.random.Generator, size: int, names: list[str]) -> Scene:
    """Draw one scene of `size` x `size` pixels that holds an object for each of `names`, in that order.

    A name is a base shape, drawn in any texture, or a glyph. Colour, size, place, turn and background are free, but
    what words before a shape say: "red striped circle".
    """
    told = [words_of(name) for name in names]
    ground = str(rng.choice([c for c in COLOURS if c not in [colour for colour, _, _ in told]]))
    tint = np.clip(np.array(COLOURS[ground]) * 0.6 + rng.uniform(0.0, 0.4), 0, 1)
    canvas = background(str(rng.choice(BACKGROUNDS)), tint, size, rng)
    others = [c for c in COLOURS if c != ground]
    things: list[Thing] = []
    for colour, pattern, name in told:
        tone = colour or str(rng.choice(others))
        thing = _draw(canvas, name, tone, pattern, alone=len(names) == 1, rng=rng)
        things = [behind(t, thing.mask) for t in things]
        things.append(thing)
    picture = _degrade(canvas, rng)
    phrases = " and ".join(with_article(t.phrase(rng)) for t in things)
    where = on_ground(ground) if rng.random() < 0.15 else ""
    return Scene(picture, tuple(things), str(rng.choice(CAPTIONS)).format(phrases) + where, ground)


def words_of(name: str) -> tuple[str, str, str]:
    """The colour and the texture that a name says, or "", and its shape or glyph."""
    *words, kind = name.split()
    colour, texture = (next((w for w in words if w in known), "") for known in (COLOURS, TEXTURES))
    return colour, texture, kind


def _draw(canvas: np.ndarray, name: str, colour: str, pattern: str, alone: bool, rng: np.random.Generator) -> Thing:
    """Paint an object onto `canvas` (H, W, 3) in place, of any texture if `pattern` is ""."""
    side = canvas.shape[0]
    pattern = NOVEL[name][1] if name in NOVEL else pattern or str(rng.choice(TEXTURES))
    size = str(rng.choice(["small", "medium", "large"]))
    low, high = {"small": (0.19, 0.24), "medium": (0.27, 0.34), "large": (0.37, 0.45)}[size]
    radius = rng.uniform(low, high) * side * (1.0 if alone else 0.6)
    x, y = rng.uniform(radius * 0.9, side - radius * 0.9, 2)
    return paint(canvas, Look(name, pattern, colour, size), np.array(COLOURS[colour]), (x, y), radius, rng)


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


def picture(seed: int, split: str, index: int, size: int, name: str, variety: float = 1.0) -> Scene:
    """The `index`-th one-object scene of a split: the same one whatever else is drawn. What is free in it varies by
    `variety`, a share in [0, 1] of its range."""
    return scene(stream_of([seed, STREAMS.index(split), index], variety), size, [name])


def faint(image: np.ndarray, contrast: float) -> np.ndarray:
    """A picture (H, W, 3) uint8 with a share `contrast` of each pixel's distance from mid-grey; at 1 as it is."""
    return image if contrast == 1 else np.rint(MID_GREY + contrast * (image - MID_GREY)).astype(np.uint8)


def scenes_picture(seed: int, split: str, index: int, size: int, names: Sequence[str], objects: int) -> Scene:
    """The `index`-th scene of a split with one to `objects` things, the same one whatever else is drawn.

    The classes take turns, and the others in a scene are drawn at random, each at any depth; see `seen_whole`.
    """
    stream = len(STREAMS) + STREAMS.index(split)  # apart from those of `picture`
    return seen_whole(scene, [seed, stream, index], index, size, names, objects)


def seen_whole(
    draw: Callable[[np.random.Generator, int, list[str]], Scene],
    stream: list[int],
    index: int,
    size: int,
    names: Sequence[str],
    objects: int,
) -> Scene:
    """A scene by `draw` with the `index`-th class and up to `objects` - 1 others.

    Every thing can be seen, so that the boxes and masks are the whole truth: a scene in which one shows less than
    LEAST_SHARE of itself, or fewer than LEAST_PIXELS pixels, is drawn again from the next stream. `DataError` after
    MOST_DRAWS of them.
    """
    rng = np.random.default_rng(stream)
    others = rng.choice(names, rng.integers(0, objects))
    shown = rng.permutation([names[index % len(names)], *others]).tolist()
    for number in range(1, MOST_DRAWS + 1):
        drawn = draw(np.random.default_rng([*stream, number]), size, shown)
        seen = [(thing.mask.sum(), thing.pixels) for thing in drawn.things]
        if all(pixels >= LEAST_PIXELS and pixels >= LEAST_SHARE * of for pixels, of in seen):
            return drawn
    raise DataError(
        f"{len(shown)} objects do not fit into {size} x {size} pixels so that each can be seen; lower `objects` or "
        "raise `size`"
    )
