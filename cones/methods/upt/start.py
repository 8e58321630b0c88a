"""Where a search of UPT starts, by variant and ablation."""

from torch import nn

from cones.interfaces.protocols import Backbone
from cones.interfaces.randomness import seeded
from cones.methods.context import random_context
from cones.methods.coop import SLOTS
from cones.methods.start import Start
from cones.methods.upt.blocks import Attentive, mvlpt_block, released_block
from cones.methods.upt.module import UPT, OneTable, TwoTables
from cones.methods.upt.settings import UPT as Settings
from cones.methods.visual import layers_of, uniform_prompts

MVLPT_WIDTH = 128


def start_upt(settings: Settings, backbone: Backbone, start: Start) -> UPT:
    """UPT before its search. Raises `BackboneError` for more layers than the image encoder has."""
    released = settings.variant == "released"
    layers = layers_of(1 if released else settings.depth, backbone.sites["visual_tokens"], settings.name)
    with seeded(start.seed):
        makes = _makes(settings, layers, backbone, start)
    position = settings.class_token_position or ("end" if released else "middle")
    return UPT(makes, settings.n_ctx, SLOTS[position])


def _makes(settings: Settings, layers: int, backbone: Backbone, start: Start) -> nn.Module:
    width, site, n = backbone.sites["text_tokens"].width, backbone.sites["visual_tokens"], settings.n_ctx
    transform, m = settings.transform or "attention", layers * settings.n_ctx
    if settings.variant == "mvlpt":
        return _two_tables(mvlpt_block(MVLPT_WIDTH), MVLPT_WIDTH, n, layers, backbone, start)
    block: nn.Module | None = None if transform == "none" else Attentive(width, transform == "attention")
    if settings.variant == "released":
        block = released_block(width)
    elif settings.shared is False:
        return _two_tables(block, width, n, layers, backbone, start)
    rows = m if block is None else n + m
    return OneTable(random_context(rows, width, None, start.generator), block or nn.Identity(), n, m, site.width)


def _two_tables(
    block: nn.Module | None, width: int, n: int, layers: int, backbone: Backbone, start: Start
) -> TwoTables:
    """A table for each site, each as a method of that site alone starts its own: CoOp, VPT."""
    generator = start.generator
    text = random_context(n, backbone.sites["text_tokens"].width, None, generator)
    visual = uniform_prompts(layers, n, backbone.sites["visual_tokens"], generator)
    return TwoTables(text, visual.flatten(0, 1), block, width)
