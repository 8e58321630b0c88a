"""Phrases about scenes of the generated world, true and false ones, to pretrain a grounded detector on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from cones.synthetic.things import Thing
from cones.synthetic.world import COLOURS, SHAPES, TEXTURES, Scene


@dataclass(frozen=True)
class Grounded:
    """A picture with phrases about it, to pretrain a detector on: `pixels` uint8, boxes and masks of its things, which
    things each phrase is true of, and the kinds of each thing (an index for its name, its texture, its colour)."""

    pixels: UInt8[Tensor, "3 h w"]
    boxes: Float[Tensor, "n 4"]
    masks: Bool[Tensor, "n h w"]
    phrases: tuple[str, ...]
    matches: Bool[Tensor, "n p"]
    kinds: Int[Tensor, "n k"]


GENERIC = "object"
FORMS = ("name", "texture name", "colour name", "colour texture name", "colour", "texture", "")
"""Which attributes a phrase tells; without a name it speaks of an object."""
WEIGHTS = (0.45, 0.2, 0.14, 0.08, 0.06, 0.05, 0.02)
VALUES = {"colour": (*COLOURS, "grey"), "texture": TEXTURES, "name": SHAPES}
LEAST_PIXELS = 40
"""A thing that shows less is no truth: the others hide it."""

Phrase = dict[str, str]


def words(phrase: Phrase) -> str:
    """A phrase as it is written."""
    parts = [phrase.get("colour"), phrase.get("texture"), phrase.get("name", GENERIC)]
    return " ".join(part for part in parts if part)


def is_true(phrase: Phrase, thing: Thing) -> bool:
    """Whether a phrase is true of a thing."""
    return all(getattr(thing, attribute) == value for attribute, value in phrase.items())


def grounded(scene: Scene, rng: np.random.Generator) -> Grounded:
    """A scene with phrases in random order: at times the names of all shapes, else some true and some false phrases.
    Every other time the picture is mirrored."""
    things = [t for t in scene.things if t.mask.sum() >= LEAST_PIXELS]
    all_names = [{"name": s} for s in SHAPES]
    phrases = all_names if rng.random() < 0.4 else _phrases(things, rng) or all_names
    phrases = [phrases[i] for i in rng.permutation(len(phrases))]
    image, height, width = scene.image, *scene.image.shape[:2]
    boxes = np.array([t.box for t in things], dtype=np.float32).reshape(-1, 4)
    masks = np.array([t.mask for t in things], dtype=bool).reshape(-1, height, width)
    if rng.random() < 0.5:
        image, masks = image[:, ::-1], masks[:, :, ::-1]
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
    matches = np.array([[is_true(p, t) for p in phrases] for t in things], dtype=bool).reshape(
        len(things), len(phrases)
    )
    return Grounded(
        torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
        torch.from_numpy(boxes),
        torch.from_numpy(np.ascontiguousarray(masks)),
        tuple(words(p) for p in phrases),
        torch.from_numpy(matches),
        torch.tensor([[values.index(getattr(t, a)) for a, values in VALUES.items()] for t in things]).reshape(-1, 3),
    )


def _phrases(things: Sequence[Thing], rng: np.random.Generator) -> list[Phrase]:
    """One true phrase for each thing, and false ones, half of which differ from a true one in one word."""
    found: dict[str, Phrase] = {}
    for thing in things:
        if rng.random() < 0.9:
            phrase = _form({a: str(getattr(thing, a)) for a in VALUES}, rng)
            found[words(phrase)] = phrase
    true = list(found.values())
    for _ in range(int(rng.integers(2, 9))):
        if true and rng.random() < 0.5:
            phrase = dict(true[int(rng.integers(len(true)))])
            changed = str(rng.choice(list(phrase))) if phrase else "colour"
            phrase[changed] = str(rng.choice(VALUES[changed]))
        else:
            phrase = _form({a: str(rng.choice(values)) for a, values in VALUES.items()}, rng)
        if not any(is_true(phrase, t) for t in things):
            found[words(phrase)] = phrase
    return list(found.values())


def _form(attributes: Phrase, rng: np.random.Generator) -> Phrase:
    told = str(rng.choice(FORMS, p=WEIGHTS)).split()
    return {a: v for a, v in attributes.items() if a in told}
