"""LP++: the settings."""

from typing import TYPE_CHECKING, ClassVar, Literal

from cones.common.settings import Count
from cones.methods.searched import Method

if TYPE_CHECKING:
    from torch import nn

    from cones.interfaces.protocols import Backbone
    from cones.methods.start import Start


class LpPlusPlus(Method):
    """LP++ (Huang et al. 2024): a prototype for each class, and a multiplier for the text of each class.

    Gradient descent on all pictures at once, with the step sizes that the data's Lipschitz bounds give: no rate is
    chosen and no validation picture looked at. Steps, starts and bounds are those of its released code.
    """

    families: ClassVar[frozenset[str]] = frozenset({"dual_encoder"})
    name: Literal["lp_plus_plus"]
    steps: Count = 300

    def build(self, backbone: "Backbone", start: "Start") -> "nn.Module":
        from cones.methods.lp_plus_plus.module import LpPlusPlus as Module

        return Module(start.text, self.steps)
