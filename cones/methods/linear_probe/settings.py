"""The linear probe: the settings."""

from typing import TYPE_CHECKING, ClassVar, Literal

from cones.common.settings import Count
from cones.methods.searched import Method

if TYPE_CHECKING:
    from torch import nn

    from cones.interfaces.protocols import Backbone
    from cones.methods.start import Start


class LinearProbe(Method):
    """Logistic regression on the image features (Radford et al. 2021, appendix A.3): no text at all.

    As published its strength is chosen on validation: the best of 1e6, 1e4, ... 1e-6, then by halving the range of a
    power of ten to either side of it `refinements` times. It sees each training picture in all of its views.
    """

    families: ClassVar[frozenset[str]] = frozenset({"dual_encoder"})
    name: Literal["linear_probe"]
    refinements: Count = 8
    iterations: Count = 1000
    """Most iterations of L-BFGS for one strength."""

    @property
    def needs_validation(self) -> str:
        return "its strength is chosen on them; leave it out, or take `lp_plus_plus`, which chooses nothing"

    def build(self, backbone: "Backbone", start: "Start") -> "nn.Module":
        from cones.methods.linear_probe.module import LinearProbe as Module

        return Module(start.text, self.refinements, self.iterations)
