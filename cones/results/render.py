"""The templates of the pages beside this file, filled in: what comes from outside is text in them, never markup."""

from base64 import b64encode
from pathlib import Path
from typing import Any

SHARES = ("accuracy", "macro_f1")
STARTS = ("box_ap", "mask_ap", "harmonic_mean")
"""How the names of other figures begin that people read as percent."""


def render(template: str, **values: Any) -> str:
    """A page as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=here, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"figure": figure, "data_url": data_url}
    return environment.get_template(template).render(**values)


def figure(value: float, name: str) -> str:
    """A number as people read it: shares as percent, counts whole, seconds and losses short."""
    if is_share(name):
        return f"{100 * value:.1f} %"
    if name.endswith("seconds"):
        return f"{value:.1f} s"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3f}"


def is_share(name: str) -> bool:
    """Whether a figure is one that people read as percent; what stands behind `/` says on which data."""
    return name.partition("/")[0] in SHARES or name.endswith("_accuracy") or name.startswith(STARTS)


def data_url(image: bytes) -> str:
    """A picture (JPEG, PNG or SVG) within the page. An SVG shown so runs no script."""
    kinds = {b"\x89PNG": "png", b"<svg": "svg+xml"}
    kind = next((kind for start, kind in kinds.items() if image.startswith(start)), "jpeg")
    return f"data:image/{kind};base64,{b64encode(image).decode()}"
