"""Pretrain `glip-tiny` on the generated world's base concepts (`make pretrain`)."""

import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cones.backbones.glip.glip import Glip
from cones.backbones.glip.parts import PARTS, build_part
from cones.common.console import progress_bar
from cones.common.files import fresh_folder
from cones.common.layout import BACKBONES
from cones.common.process import cores
from cones.interfaces.pictures import Features, Instances
from cones.pretrain.glip_model import CONFIG, SIDE, train_glip, write_glip, write_text_encoder
from cones.pretrain.grounding import VALUES, grounded
from cones.synthetic.clinical import clinical_picture
from cones.synthetic.world import SHAPES, Scene, scenes_picture
from cones.tasks.detection.measure import evaluate_detection

PICTURES, OBJECTS, STEPS, BATCH, HELD_OUT, SEED = 16_000, 5, 3_000, 16, 300, 1
CLINICAL = 3
"""Every so manieth picture is a clinical one."""


def main() -> None:
    began = time.perf_counter()
    torch.manual_seed(SEED)
    draw = partial(scene_of, "pretrain")
    with ProcessPoolExecutor(len(cores())) as workers:
        scenes = list(workers.map(draw, range(PICTURES), chunksize=100))
    with fresh_folder(BACKBONES / "glip-tiny") as out:
        write_text_encoder([word for values in VALUES.values() for word in values], out / "text_encoder")
        parts = nn.ModuleDict({name: build_part(name, CONFIG, out) for name in PARTS})

        def batch(step: int):
            rng = np.random.default_rng([SEED, 5, step])
            return [grounded(scenes[i], rng) for i in rng.integers(0, PICTURES, BATCH)]

        with progress_bar("pretraining glip-tiny", STEPS) as advance:
            kinds = [len(values) for values in VALUES.values()]
            train_glip(parts, batch, kinds, STEPS, lambda step, loss: advance(note=f"loss {loss:.2f}"))
        write_glip(parts, out)
        metrics = base_metrics(out)
    seconds = time.perf_counter() - began
    told = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
    print(f"glip-tiny: {told} on {HELD_OUT} held-out scenes of base concepts, {seconds:.0f} s")


def scene_of(split: str, index: int) -> Scene:
    """A scene of one to `OBJECTS` base things, or in its turn a clinical one."""
    if split == "pretrain" and not index % CLINICAL:
        return clinical_picture(SEED, split, index, SIDE, SHAPES, OBJECTS)
    return scenes_picture(SEED, split, index, SIDE, SHAPES, OBJECTS)


@torch.no_grad()
def base_metrics(folder: Path) -> dict[str, float]:
    """Zero-shot box and mask AP on scenes of a stream that pretraining does not draw from, by the class names."""
    from PIL import Image

    glip = Glip(folder)
    text = glip.embed_text(SHAPES)
    found: list[Instances] = []
    truths: list[Instances] = []
    for start in range(0, HELD_OUT, BATCH):
        scenes = [scene_of("test", i) for i in range(start, min(start + BATCH, HELD_OUT))]
        pixels, geometry = glip.view([Image.fromarray(s.image) for s in scenes], (SIDE, SIDE))
        views = torch.zeros(len(scenes), dtype=torch.long)
        predicted = glip.predict(Features(dict(glip.encode(pixels)), views, geometry=geometry), text)
        found += predicted.instances or ()
        truths += [
            Instances(
                torch.tensor([t.box for t in s.things]),
                torch.tensor([SHAPES.index(t.name) for t in s.things]),
                torch.from_numpy(np.stack([t.mask for t in s.things])),
            )
            for s in scenes
        ]
    metrics = evaluate_detection(found, truths, [(SIDE, SIDE)] * HELD_OUT, SHAPES, masks=True).metrics
    return {name: metrics[name] for name in ("box_ap", "box_ap50", "mask_ap", "mask_ap50")}
