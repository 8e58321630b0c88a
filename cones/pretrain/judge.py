"""Train `judge-tiny`, the judge of likeness, on the generated world's base concepts (`make pretrain`)."""

import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch

from cones.common.console import progress_bar
from cones.common.files import fresh_folder
from cones.common.layout import BACKBONES
from cones.common.process import cores
from cones.pretrain.grounding import VALUES
from cones.pretrain.judge_model import SIDE, judge_model, normalised, train_judge, write_judge
from cones.synthetic.world import SHAPES, scene

PICTURES, HELD_OUT, STEPS, SEED = 40_000, 1_000, 4_000, 77


def main() -> None:
    began = time.perf_counter()
    torch.manual_seed(SEED)
    with ProcessPoolExecutor(len(cores())) as workers:
        drawn = list(workers.map(thing_of, range(PICTURES + HELD_OUT), chunksize=200))
    images = torch.from_numpy(np.stack([image for image, _ in drawn])).permute(0, 3, 1, 2)
    labels = torch.tensor([label for _, label in drawn])
    sizes = [len(values) for values in VALUES.values()]
    model = judge_model(VALUES)
    with fresh_folder(BACKBONES / "judge-tiny") as out:
        with progress_bar("pretraining judge-tiny", STEPS) as advance:
            seen, told = images[:PICTURES], labels[:PICTURES]
            train_judge(model, seen, told, sizes, STEPS, SEED, lambda step, loss: advance(note=f"loss {loss:.2f}"))
        write_judge(model, out)
    model.float()
    with torch.inference_mode():
        logits = torch.cat([model(normalised(some)).logits for some in images[PICTURES:].split(100)])
    right = [
        float((guess.argmax(1) == truth).float().mean())
        for guess, truth in zip(logits.split(sizes, 1), labels[PICTURES:].unbind(1))
    ]
    shares = ", ".join(f"{name} {share:.3f}" for name, share in zip(VALUES, right))
    print(f"judge-tiny: {shares} right on {HELD_OUT} held-out pictures, {time.perf_counter() - began:.0f} s")


def thing_of(index: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """A picture of one base thing, and the place of each of its attributes' values."""
    rng = np.random.default_rng([SEED, 13, index])
    drawn = scene(rng, SIDE, [SHAPES[index % len(SHAPES)]])
    thing = drawn.things[0]
    return drawn.image, tuple(values.index(getattr(thing, name)) for name, values in VALUES.items())
