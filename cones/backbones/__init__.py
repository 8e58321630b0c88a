"""The only door to backbones: find a base model's files, check what they are, open them."""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cones.common.errors import BackboneError

if TYPE_CHECKING:
    import torch

    from cones.backbones.settings import Family
    from cones.interfaces.protocols import Backbone


def usable_device(device: Any = "auto") -> "torch.device":
    """The device of that name, with its number; `auto` is the first GPU where torch has one.

    Raises `BackboneError` for one that cannot be computed on here.
    """
    import torch

    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        probe = torch.zeros(1, device=device)
        probe.item()
    except (RuntimeError, AssertionError) as error:  # what torch raises where it has no CUDA is an AssertionError
        there = ["auto", "cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        why = str(error).split("\n")[0].split(". ")[0]
        raise BackboneError(
            f"the device `{device}` cannot be used here ({why}); there are {', '.join(there)}; cpu always works "
            "(`cones doctor` says more)"
        ) from error
    return probe.device


def open_backbone(kind: str, folder: Path, device: Any = "cpu", task: str | None = None, **known: Any) -> "Backbone":
    """Open a base model of a kind from its folder for a task, or for all it can do.

    `known` are facts that need no weights to be read again.
    """
    return _settings(kind).open_model(folder, device, task, **known)


def family_of(kind: str) -> "Family":
    """The family of a kind of base model."""
    return _settings(kind).FAMILY


def _settings(kind: str) -> ModuleType:
    kinds = sorted(file.parent.name for file in Path(__file__).parent.glob("*/settings.py"))
    if kind not in kinds:
        raise BackboneError(f"unknown kind of backbone `{kind}`; there are {', '.join(kinds[:-1])} and {kinds[-1]}")
    return import_module(f"cones.backbones.{kind}.settings")
