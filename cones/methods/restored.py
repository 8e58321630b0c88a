"""Methods that give each picture a text of its own: a Concept of one holds its parameters, and runs it to predict.

The folder of such a method is called as the method, and its `module` has `restored(searched, backbone)`.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cones.common.errors import ConceptError
from cones.common.escaping import one_line, shortened
from cones.interfaces.protocols import Backbone


def can_restore(name: Any) -> bool:
    """Whether a method of this name can be made again of a Concept."""
    if not (isinstance(name, str) and name.isidentifier() and (Path(__file__).parent / name / "module.py").is_file()):
        return False
    return hasattr(import_module(f"cones.methods.{name}.module"), "restored")


def restored(name: Any, searched: Mapping[str, Tensor], backbone: Backbone, row: str) -> nn.Module:
    """The module of a row's method, of its parameters by their names; `ConceptError` for what is none."""
    if not can_restore(name):
        raise ConceptError(
            f"`{row}` gives each picture a text of its own by the method {shortened(name)}, which this version cannot "
            "make again; install the version that searched it, or search the row again"
        )
    try:
        return import_module(f"cones.methods.{name}.module").restored(searched, backbone)
    except (ValueError, RuntimeError) as error:
        raise ConceptError(
            f"`{row}` holds other parameters than those of `{name}` on this base model: {one_line(error, 160)}; search "
            "the row again"
        ) from None
