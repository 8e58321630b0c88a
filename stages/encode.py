"""Encode a concept: its shots and validation pictures through the image encoder, its names through the text encoder."""

from cones.backbones.settings import BackboneConfig
from cones.common.console import progress_bar
from cones.common.layout import ENCODED, PREPARED, stage_lock
from cones.common.planned import read_plan
from cones.common.process import STAGE_WAIT, lock, run_stage
from cones.tasks.settings import ConceptSettings


def main(name: str) -> None:
    planned = read_plan("encode", name)
    concept, backbone = planned.part("concept", ConceptSettings), planned.part("backbone", BackboneConfig)

    from accelerate import Accelerator

    from cones.tasks.encode import draw, encode_concept

    drawn = draw(concept, PREPARED / concept.data)
    device = Accelerator().device
    alone = lock(stage_lock("encode", name), f"the concept `{name}`", STAGE_WAIT)
    with alone, progress_bar(f"encoding {name}", drawn.picture_views) as advance:
        encoded = encode_concept(name, concept, backbone, drawn, ENCODED / name, device, advance)
    trained, held = len(encoded.train), len(encoded.val)
    print(f"{name}: {trained} training pictures in {encoded.train.views} views, {held} for validation")


if __name__ == "__main__":
    run_stage(main)
