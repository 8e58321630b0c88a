"""cones: teach a large vision-language model your own concept by searching its embedding (arXiv 2305.18993)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cones.inference.open import OpenConcept

__version__ = "0.1.0"


def load(
    source: str | Path, base: str | Path | None = None, device: Any = "auto", fetch: bool = False
) -> "OpenConcept":
    """A Concept from a file or the registry: `cones.load("models:/NAME@champion").predict(images)`.

    It opens its base model once, when it is first used, on the GPU where there is one; see `cones.inference.open.load`.
    """
    from cones.inference.open import load as open_concept

    return open_concept(source, base, device, fetch)
