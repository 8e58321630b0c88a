"""Fine-tuned weights put into a model's own."""

from collections.abc import Mapping

from torch import Tensor

from cones.common.errors import BackboneError

SIDES = ("lora_A", "lora_B")
"""What LoRA's two matrices are called after the name of the weight that their product is added to."""


def with_tuned(state: Mapping[str, Tensor], tuned: Mapping[str, Tensor], lora_scale: float) -> dict[str, Tensor]:
    """A state with fine-tuned tensors in it; those that belong nowhere stay under their own names, to be refused.

    Raises `BackboneError` for LoRA's matrices whose product is no addition to their weight.
    """
    merged = dict(state)
    for name, tensor in tuned.items():
        target, _, side = name.rpartition(".")
        is_pair = side in SIDES and target in state and all(f"{target}.{s}" in tuned for s in SIDES)
        if not is_pair:
            merged[name] = tensor
        elif side == SIDES[0]:
            weight = state[target]
            addition = _product(tuned[f"{target}.{SIDES[1]}"], tensor, weight, target)
            merged[target] = weight + lora_scale * addition.to(weight.device)
    return merged


def _product(b: Tensor, a: Tensor, weight: Tensor, name: str) -> Tensor:
    """B A, of the shape of a weight."""
    shapes = (tuple(b.shape), tuple(a.shape), tuple(weight.shape))
    if any(len(shape) != 2 for shape in shapes) or b.shape[1] != a.shape[0] or weight.shape != (len(b), a.shape[1]):
        raise BackboneError(
            f"the fine-tuned weights have {SIDES[1]} {shapes[0]} and {SIDES[0]} {shapes[1]} for {name}, which is "
            f"{shapes[2]}: they are of another model"
        )
    return b @ a
