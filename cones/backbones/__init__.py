"""The only door to backbones: find a base model's files, check what they are, open them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cones.common.errors import BackboneError

if TYPE_CHECKING:
    import torch


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


def open_backbone(kind: str, folder: Path, device: Any = "cpu", task: str | None = None, **known: Any) -> Any:
    """Open a base model of a kind from its folder for a task, or for all it can do.

    `known` are facts that need no weights to be read again.
    """
    match kind:
        case "clip":
            from cones.backbones.clip.clip import Clip

            return Clip(folder, device, **known)
        case "glip":
            from cones.backbones.glip.glip import Glip

            return Glip(folder, device, draws_masks=task != "detection", **known)
        case "sd":
            from cones.backbones.sd.sd import Diffusion

            return Diffusion(folder, device)
        case _:
            raise BackboneError(f"unknown kind of backbone `{kind}`; there are clip, glip and sd")
