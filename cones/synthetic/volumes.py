"""Generated patients: chests in CT with lesions whose every voxel is known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

AIR, LUNG, TISSUE, BONE = -1000.0, -840.0, 40.0, 500.0
"""HU."""
LESIONS: Mapping[str, tuple[str, float]] = {
    "solid nodule": ("ball", 60.0),
    "cavity": ("shell", 80.0),
    "halo nodule": ("core", 60.0),
    "ground glass": ("ball", -520.0),
}
"""Each kind of lesion of a chest: its shape, and its HU."""
ATTRIBUTES: Mapping[str, str] = {
    "solid nodule": "white circle",
    "cavity": "white ring",
    "halo nodule": "white dot in a grey circle",
    "ground glass": "grey circle",
}
"""How each looks in the window of the lung."""
HALF = 0.5
MARGIN = 1.6
"""Voxels by which the parts of a body shade into each other."""


@dataclass(frozen=True)
class Patient:
    """A chest: HU (i, j, k) float32 without noise, i to the patient's left, j to the back, k to the head; the number of
    each voxel's lesion, 0 for none; the kind of each lesion, by its number; mm of a voxel; and the HU of the noise."""

    body: np.ndarray
    lesions: np.ndarray
    kinds: tuple[str, ...]
    spacing: tuple[float, float, float]
    noise: float

    def scan(self, rng: np.random.Generator) -> np.ndarray:
        """HU (i, j, k) float32, with noise of its own."""
        return self.body + rng.normal(0, self.noise, self.body.shape).astype(np.float32)


def patient(
    rng: np.random.Generator, side: int, depth: int, kinds: Sequence[str], count: int, least: float, largest: float
) -> Patient:
    """A patient of `side` x `side` x `depth` voxels with up to `count` lesions of some kinds, as many as there is room
    for, of radii from `least` to `largest` mm.

    Each has a body of its own: its width and depth, its lungs, its vessels, the noise and the blur of the scanner.
    """
    from scipy.ndimage import gaussian_filter  # here, as settings look at the names of lesions

    pixel, step = float(rng.uniform(2.2, 2.8)), float(rng.choice([2.5, 3.0, 4.0]))
    grid = [np.arange(n, dtype=np.float32) for n in (side, side, depth)]
    x, y, z = np.meshgrid(*grid, indexing="ij", sparse=True)
    middle, wide, deep = side / 2, side * rng.uniform(0.40, 0.47), side * rng.uniform(0.30, 0.38)
    body = _ellipse(x, y, middle, middle, wide, deep)
    values = AIR + (TISSUE - AIR) * body + np.zeros((1, 1, depth), np.float32)
    lungs = np.zeros(values.shape, np.float32)
    for sign in (-1, 1):
        at = middle + sign * wide * rng.uniform(0.44, 0.5)
        narrow = 1 - 0.35 * abs(z / depth - 0.4)
        lungs = np.maximum(
            lungs, _ellipse(x, y, at, middle, wide * 0.36 * narrow, deep * rng.uniform(0.66, 0.76) * narrow)
        )
    values += (LUNG - TISSUE) * lungs
    spine = _ellipse(x, y, middle, middle + deep * 0.7, side * 0.06, side * 0.06)
    values += (BONE - TISSUE) * spine
    _vessels(values, lungs, rng)
    marked, of = np.zeros(values.shape, np.uint16), list[str]()
    free = lungs > 0.95
    for _ in range(count):
        kind = str(rng.choice(list(kinds)))
        if _lesion(values, marked, free, kind, rng.uniform(least, largest), len(of) + 1, (pixel, pixel, step), rng):
            of.append(kind)
    values = gaussian_filter(values, (rng.uniform(0.3, 0.7),) * 2 + (0,))
    return Patient(values.astype(np.float32), marked, tuple(of), (pixel, pixel, step), rng.uniform(15, 45))


def _ellipse(x: np.ndarray, y: np.ndarray, at_x: float, at_y: float, wide: np.ndarray | float,
             deep: np.ndarray | float) -> np.ndarray:  # fmt: skip
    """1 inside, 0 outside, with a soft edge."""
    far = np.sqrt(((x - at_x) / wide) ** 2 + ((y - at_y) / deep) ** 2)
    return np.clip((1 - far) * np.minimum(wide, deep) / MARGIN + 0.5, 0, 1).astype(np.float32)


def _vessels(values: np.ndarray, lungs: np.ndarray, rng: np.random.Generator) -> None:
    """Tubes that wander through the lungs, thinner the further they go."""
    side, _, depth = values.shape
    for _ in range(int(rng.integers(10, 18))):
        at = np.array([side / 2 + rng.choice([-1, 1]) * side * 0.12, side / 2 + rng.normal(0, side * 0.05),
                       rng.uniform(0, depth)])  # fmt: skip
        way = np.array([np.sign(at[0] - side / 2), rng.normal(0, 0.7), rng.normal(0, 0.4)])
        radius = rng.uniform(1.2, 2.2)
        for _ in range(int(side * 0.3)):
            way += rng.normal(0, 0.15, 3)
            at += way / np.linalg.norm(way)
            radius *= 0.985
            low = np.maximum(np.floor(at - radius - 1), 0).astype(int)
            high = np.minimum(np.ceil(at + radius + 2), values.shape).astype(int)
            if (low >= high).any():
                break
            box = tuple(slice(a, b) for a, b in zip(low, high))
            x, y, z = np.ogrid[box]
            far = np.sqrt((x - at[0]) ** 2 + (y - at[1]) ** 2 + (z - at[2]) ** 2)
            inside = np.clip(radius - far + 0.5, 0, 1) * (lungs[box] > HALF)
            values[box] = np.maximum(values[box], np.where(inside > 0, LUNG + inside * (TISSUE - LUNG), AIR))


def _lesion(values: np.ndarray, marked: np.ndarray, free: np.ndarray, kind: str, radius: float, number: int,
            spacing: tuple[float, float, float], rng: np.random.Generator) -> bool:  # fmt: skip
    """Put a lesion where the lung is free; whether there was room."""
    places = np.argwhere(free)
    for at in places[rng.permutation(len(places))[:200]]:
        reach = np.ceil(radius / np.array(spacing)).astype(int) + 1
        low, high = at - reach, at + reach + 1
        if (low < 0).any() or (high > values.shape).any():
            continue
        box = tuple(slice(a, b) for a, b in zip(low, high))
        steps = np.meshgrid(*[(np.arange(a, b) - m) * s for a, b, m, s in zip(low, high, at, spacing)], indexing="ij")
        far = np.sqrt(sum(step**2 for step in steps)) / radius
        inside = far <= 1
        if not free[box][inside].all():
            continue
        shape, level = LESIONS[kind]
        within = values[box]
        if shape == "shell":
            inside_values = np.where(far > 0.55, level, AIR)
        elif shape == "core":
            inside_values = np.where(far < 0.5, level, -520.0)
        else:
            inside_values = np.full(far.shape, level)
        within[inside] = inside_values[inside]
        marked[box][inside] = number
        free[tuple(slice(max(a - 2, 0), b + 2) for a, b in zip(low, high))] = False
        return True
    return False
