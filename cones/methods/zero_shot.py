"""Zero-shot: the settings."""

from typing import Literal

from cones.common.settings import Strict, Words


class ZeroShot(Strict):
    """The class names as the text encoder reads them, nothing searched (Radford et al. 2021, section 3.1.4)."""

    name: Literal["zero_shot"]
    names: dict[Words, Words] = {}
    """What to call a class in this row alone, such as words that describe it; others keep the concept's names."""
