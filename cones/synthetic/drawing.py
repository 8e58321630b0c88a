"""Outlines, textures and backgrounds of the generated world, as arrays in [0, 1]."""

import math

import numpy as np
from PIL import Image, ImageDraw

SUPERSAMPLE = 3

# An outline is a list of (points, fill): points (n, 2) as x, y in [-1, 1], y down; fill 1 adds, 0 cuts out.
Outline = list[tuple[np.ndarray, int]]


def _polar(radius, points: int = 48) -> np.ndarray:
    angle = np.linspace(0, 2 * math.pi, points, endpoint=False)
    r = np.broadcast_to(radius(angle), angle.shape)
    return np.stack([r * np.sin(angle), -r * np.cos(angle)], axis=1)


def _points(*pairs: tuple[float, float]) -> np.ndarray:
    return np.array(pairs, dtype=float)


def _ellipse(width: float, height: float, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    return _polar(lambda a: np.ones_like(a)) * (width, height) + (x, y)


def _star(tips: int, inner: float) -> np.ndarray:
    angle = np.arange(2 * tips) * math.pi / tips
    r = np.where(np.arange(2 * tips) % 2 == 0, 1.0, inner)
    return np.stack([r * np.sin(angle), -r * np.cos(angle)], axis=1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y - 2.5], axis=1) / 16


def _blob(rng: np.random.Generator) -> np.ndarray:
    phases = rng.uniform(0, 2 * math.pi, 4)
    heights = rng.uniform(0.06, 0.16, 4)
    return _polar(lambda a: 0.8 + sum(h * np.sin((k + 2) * a + p) for k, (h, p) in enumerate(zip(heights, phases))))


def outline(shape: str, rng: np.random.Generator) -> Outline:
    """The outline of a named shape; `rng` varies those that differ from one instance to the next."""
    match shape:
        case "circle":
            return [(_ellipse(0.9, 0.9), 1)]
        case "oval":
            return [(_ellipse(0.55, 1.0), 1)]
        case "square":
            return [(_points((-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)), 1)]
        case "triangle":
            return [(_points((0, -1), (0.95, 0.75), (-0.95, 0.75)), 1)]
        case "star":
            return [(_star(5, 0.42), 1)]
        case "cross":
            return [
                (_points((-1, -0.32), (1, -0.32), (1, 0.32), (-1, 0.32)), 1),
                (_points((-0.32, -1), (0.32, -1), (0.32, 1), (-0.32, 1)), 1),
            ]
        case "ring":
            hole = rng.uniform(0.4, 0.62)
            return [(_ellipse(0.95, 0.95), 1), (_ellipse(hole, hole), 0)]
        case "crescent":
            return [(_ellipse(0.95, 0.95), 1), (_ellipse(0.8, 0.8, 0.5, -0.1), 0)]
        case "heart":
            return [(_heart(), 1)]
        case "arrow":
            return [(_points((0, -1), (0.8, -0.1), (0.3, -0.1), (0.3, 1), (-0.3, 1), (-0.3, -0.1), (-0.8, -0.1)), 1)]
        case "flower":
            return [(_polar(lambda a: 0.72 + 0.28 * np.cos(6 * a)), 1)]
        case "blob":
            return [(_blob(rng), 1)]
        case "gear":
            return [(_polar(lambda a: np.where(np.sin(9 * a) > 0, 1.0, 0.76), 144), 1), (_ellipse(0.3, 0.3), 0)]
        case "hourglass":
            return [(_points((-0.8, -1), (0.8, -1), (0.15, 0), (0.8, 1), (-0.8, 1), (-0.15, 0)), 1)]
        case "horseshoe":
            return [
                (_ellipse(0.95, 0.95), 1),
                (_ellipse(0.5, 0.5), 0),
                (_points((-0.5, 0), (0.5, 0), (0.5, 1.1), (-0.5, 1.1)), 0),
            ]
        case "bolt":
            return [(_points((0.25, -1), (-0.7, 0.15), (-0.05, 0.15), (-0.3, 1), (0.7, -0.2), (0.05, -0.2)), 1)]
        case "trefoil":
            return [(_polar(lambda a: 0.3 + 0.7 * np.abs(np.cos(1.5 * a)) ** 0.6, 96), 1)]
        case _:
            raise ValueError(f"no outline is drawn for the shape '{shape}'")


def coverage(
    parts: Outline, shape: tuple[int, int], centre: tuple[float, float], radius: float, angle: float
) -> np.ndarray:
    """How much of each pixel of a (height, width) window an outline covers: float32 in [0, 1].

    `centre` (x, y) and `radius` are in pixels; `angle` in radians turns clockwise.
    """
    rotation = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    canvas = Image.new("L", (shape[1] * SUPERSAMPLE, shape[0] * SUPERSAMPLE))
    draw = ImageDraw.Draw(canvas)
    for points, fill in parts:
        placed = (points @ rotation * radius + centre) * SUPERSAMPLE
        draw.polygon([tuple(p) for p in placed.tolist()], fill=255 * fill)
    return np.asarray(canvas.reduce(SUPERSAMPLE), dtype=np.float32) / 255


def texture(name: str, u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How much of the second tone shows at object coordinates `u`, `v` (both in [-1, 1]); same shape, [0, 1]."""
    pitch = rng.uniform(0.85, 1.15)
    wave = math.pi * 3.2 * pitch
    match name:
        case "plain":
            return np.zeros_like(u)
        case "striped":
            return (np.sin(wave * v) > 0).astype(np.float32)
        case "dotted":
            return (np.sin(wave * u) * np.sin(wave * v) > 0.45).astype(np.float32)
        case "checkered":
            return (np.sin(wave * 0.8 * u) * np.sin(wave * 0.8 * v) > 0).astype(np.float32)
        case "grainy":
            return rng.random(u.shape, dtype=np.float32)
        case "shaded":
            return np.clip(0.5 + 0.7 * u, 0, 1)
        case "banded":
            return (np.sin(wave * 1.3 * np.hypot(u, v)) > 0).astype(np.float32)
        case "hatched":
            return np.maximum(np.sin(wave * (u + v)) > 0.55, np.sin(wave * (u - v)) > 0.55).astype(np.float32)
        case "zigzag":
            return (np.sin(wave * (v + 0.35 * np.abs(np.mod(u * 2.2, 1.0) - 0.5) * 2)) > 0).astype(np.float32)
        case _:
            raise ValueError(f"no texture is drawn for '{name}'")


def background(kind: str, colour: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A background around a colour (3,) in [0, 1]: (size, size, 3) float32."""
    flat = np.broadcast_to(colour.astype(np.float32), (size, size, 3))
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    match kind:
        case "plain":
            return flat.copy()
        case "graded":
            slope_x, slope_y = rng.uniform(-0.15, 0.15, 2)
            return flat + (ramp[:, None] * slope_y + ramp[None, :] * slope_x)[..., None]
        case "cloudy":
            cells = int(rng.integers(3, 8))
            small = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            noise = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)
            return flat + (noise / 255 - 0.5) * rng.uniform(0.1, 0.35)
        case "lined":
            slant = rng.uniform(-1, 1)
            lines = np.sin((ramp[:, None] + slant * ramp[None, :]) * rng.uniform(12, 30))
            return flat + (0.04 * lines)[..., None].astype(np.float32)
        case "speckled":
            return flat + (rng.random((size, size, 1), dtype=np.float32) - 0.5) * rng.uniform(0.05, 0.2)
        case _:
            raise ValueError(f"no background is drawn for '{kind}'")
