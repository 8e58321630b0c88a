"""What a model in open_clip's layout is described by, and its weights under the names that transformers has."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cones.common.settings import Strict

Size = Annotated[int, Field(ge=1)]
Three = Field(min_length=3, max_length=3)
"""Red, green and blue."""
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
"""Of the pictures that OpenAI's CLIP was trained on, from 0 to 1; open_clip takes them where nothing else is said."""
FUSED = re.compile(r"\.([qkv])_proj\.(weight|bias)$")
"""What is one tensor for queries, keys and values in open_clip and in timm."""


class Preprocess(Strict):
    """What is done to a picture, `preprocess_cfg`: as CLIP's processor does it."""

    mean: Annotated[list[float], Three] = MEAN
    std: Annotated[list[Annotated[float, Field(gt=0)]], Three] = STD
    interpolation: Literal["bicubic"] = "bicubic"
    resize_mode: Literal["shortest"] = "shortest"


@dataclass(frozen=True)
class Layout:
    """One kind of model that open_clip publishes."""

    settings: type[Strict]
    """Its `open_clip_config.json`: `model_cfg`, and `preprocess_cfg`, a `Preprocess`."""
    tokenizer: str
    """Its class in transformers."""
    tokenizer_files: tuple[tuple[str, ...], ...]
    """Sets of files, each of which one can be made of."""
    renames: tuple[tuple[str, str], ...]
    """What is put in the place of what, one after another, to have open_clip's name for one of transformers."""
    transposed: frozenset[str]
    """Weights of transformers that are (out, in), and (in, out) in open_clip."""
    unused: frozenset[str]
    """Names in published files that nothing is made of."""
    config: Callable[[Any, Mapping[str, Tensor]], dict[str, Any]]
    """`config.json`, from settings and weights."""
    build: Callable[[Mapping[str, Any]], nn.Module]
    """The model of a `config.json`, with random weights."""

    def published(self, name: str) -> str:
        """A weight's name in open_clip, by its name in transformers."""
        for ours, theirs in self.renames:
            name = name.replace(ours, theirs)
        return name

    def expected(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Without content, the tensors that a model with these weights has in open_clip."""
        found = {}
        for name, tensor in own.items():
            shape = tuple(tensor.shape)[::-1] if name in self.transposed else tuple(tensor.shape)
            if FUSED.search(name):
                shape = (3 * shape[0], *shape[1:])
            found[self.published(name)] = torch.empty(shape, device="meta")
        return found

    def taken(self, name: str, state: Mapping[str, Tensor]) -> Tensor:
        """A weight by its name in transformers, from weights as open_clip has them."""
        found = state[self.published(name)]
        if fused := FUSED.search(name):
            found = found.tensor_split(3)["qkv".index(fused[1])]
        return found.T if name in self.transposed else found
