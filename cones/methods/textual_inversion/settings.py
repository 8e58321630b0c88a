"""Textual inversion: the settings."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from cones.common.settings import RateOrAuto, Weight
from cones.methods.searched import Denoised

if TYPE_CHECKING:
    from torch import nn

    from cones.interfaces.protocols import Backbone
    from cones.methods.start import Start


class TextualInversion(Denoised):
    """Textual inversion (Gal et al. 2022): new token vectors at the text encoder's input, in template sentences."""

    families: ClassVar[frozenset[str]] = frozenset({"diffusion"})
    site: ClassVar[Literal["text_embeds", "text_tokens"]] = "text_tokens"
    name: Literal["textual_inversion"]
    n_tokens: int = Field(1, ge=1, le=64)
    """Vectors that stand for the concept; they start from the first tokens of its class word."""
    lr: RateOrAuto = 5e-4
    """Published for a batch of one picture; its authors multiply it by the batch size."""
    weight_decay: Weight = 1e-2
    warmup_epochs: int = Field(0, ge=0, le=100_000_000)

    def build(self, backbone: "Backbone", start: "Start") -> "nn.Module":
        from cones.methods.sentences import apart, fitted
        from cones.methods.textual_inversion.module import TextualInversion as Module

        vectors = fitted(backbone.word_vectors(start.names[0]), self.n_tokens)
        return Module(start.templates, apart(vectors, start.generator))
