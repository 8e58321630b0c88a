"""Zero-shot: the class names as the text encoder reads them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from cones.common.settings import Words
from cones.methods.searched import Method

if TYPE_CHECKING:
    from torch import nn

    from cones.interfaces.protocols import Backbone
    from cones.methods.start import Start


class ZeroShot(Method):
    """The class names as the text encoder reads them, nothing searched (Radford et al. 2021, section 3.1.4)."""

    families: ClassVar[frozenset[str]] = frozenset({"dual_encoder", "late", "grounding", "diffusion"})
    name: Literal["zero_shot"]
    names: dict[Words, Words] = {}
    """What to call a class in this row alone, such as words that describe it; others keep the concept's names."""

    attributes: bool = False
    """Whether classes are called by what the concept's `attributes` say of their looks, as in MIU-VL (Qin et al. 2023);
    `names` comes before them."""

    def on_classes(self, attributes: Mapping[str, str]) -> "ZeroShot":
        return self.model_copy(update={"names": {**attributes, **self.names}}) if self.attributes else self

    @property
    def names_any_class(self) -> bool:
        return True

    @property
    def own_names(self) -> Mapping[str, str]:
        return self.names

    def build(self, backbone: "Backbone", start: "Start") -> "nn.Module":
        from cones.methods.fixed import FixedSentences, FixedText

        text = backbone.embed_text(start.names, templates=start.templates) if self.names else start.text
        return FixedSentences(text) if start.in_sentences else FixedText(text)
