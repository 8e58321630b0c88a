"""The rungs of `t2i.py`: each is the recipe of another with one field of it changed."""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

PICTURES, PUBLISHED_PICTURES = 5, 4
"""Of the subject, and those that a step of the published recipe shows."""
WEIGHT_DECAY = 1e-2
"""Of the published recipe, and of every rung."""
LIBRARY_STEPS = 600
"""Over which a falling rate falls to zero, and steps at most of a search with one."""
QUIET = {"copies": 2, "stratified": True, "antithetic": True}


@dataclass(frozen=True)
class Recipe:
    """All that rungs differ in."""

    latents: Literal["encoded when shown", "kept"] = "encoded when shown"
    trained: Literal["token table", "own rows"] = "token table"
    ends: Literal["after its schedule", "by the fixed batch"] = "after its schedule"
    pictures: int = PUBLISHED_PICTURES
    """That a step shows."""
    rate: Literal["constant", "falling"] = "constant"
    loop: Literal["published", "library"] = "published"
    at_once: int = 1
    """Pictures that go through the UNet together; 1: those of a step one after the other."""
    vectors: int = 1
    method: Literal["textual_inversion", "cones"] = "textual_inversion"
    noise: Literal["plain", "quiet"] = "plain"
    start: Literal["word", "pictures"] = "word"

    @property
    def stops(self) -> bool:
        return self.ends == "by the fixed batch"


@dataclass(frozen=True)
class Rung:
    """A recipe, the rung `after` which it stands, and in words what it `changes` of that one."""

    name: str
    recipe: Recipe
    after: str | None
    changes: str

    def then(self, name: str, changes: str, **changed: Any) -> "Rung":
        """A rung after this one."""
        return Rung(name, replace(self.recipe, **changed), self.name, changes)


def changed(rung: Rung, before: Rung) -> list[str]:
    """The fields that two rungs' recipes differ in."""
    return [f.name for f in fields(Recipe) if getattr(rung.recipe, f.name) != getattr(before.recipe, f.name)]


def ladder() -> list[Rung]:
    """From the published recipe to ConES, and `cones` with one thing more."""
    public = Rung("public_recipe", Recipe(), None, "textual inversion as published")
    cached = public.then("+cached_latents", "latents are kept: no autoencoder in a step", latents="kept")
    rows = cached.then("+own_rows", "the new row is a parameter of its own, not the whole table", trained="own rows")
    early = rows.then("+early_stop", "looks at a fixed batch, and ends when it says so", ends="by the fixed batch")
    five = early.then("+five_pictures", "a step shows all five pictures, not four of them", pictures=PICTURES)
    falling = five.then("+falling_rate", "the rate falls to zero along a cosine, and is not constant", rate="falling")
    loop = falling.then("+library_loop", "the library's loop: random order, fused AdamW, a look first", loop="library")
    batch = loop.then("+one_batch", "a step's pictures in one batch, not one after the other", at_once=PICTURES)
    one = batch.then("cones_one_vector", "no text encoder: its output is searched", method="cones")
    two = batch.then("+two_vectors", "two vectors in place of one", vectors=2)
    cones = two.then("cones", "no text encoder: its output is searched", method="cones")
    quiet = cones.then("cones_low_variance", "two opposite noises a latent, timesteps spread evenly", noise="quiet")
    warm = cones.then("cones_warm_start", "starts from the pictures, not from the class word", start="pictures")
    return [public, cached, rows, early, five, falling, loop, batch, one, two, cones, quiet, warm]


def settings_of(recipe: Recipe, rate: float, steps: int, every: int) -> dict[str, Any]:
    """A method's settings in the library's loop, where an epoch is one step, with a look each `every` steps."""
    about: dict[str, Any] = {
        "name": recipe.method,
        "n_tokens": recipe.vectors,
        "lr": rate,
        "weight_decay": WEIGHT_DECAY,
        "epochs": steps,
        "validate_every": every,
        "batch_size": recipe.pictures,
        "accumulate": recipe.pictures // recipe.at_once,
        "warmup_epochs": 0,
        "patience": None,
        "noise": QUIET if recipe.noise == "quiet" else None,
    }
    if recipe.method == "cones":
        about["init"] = "image" if recipe.start == "pictures" else "text"
    return about
