"""Fine-tuned weights put into a model's own."""

from collections.abc import Mapping

from torch import Tensor

SIDES = ("lora_A", "lora_B")
"""What LoRA's two matrices are called after the name of the weight that their product is added to."""


def with_tuned(state: Mapping[str, Tensor], tuned: Mapping[str, Tensor], lora_scale: float) -> dict[str, Tensor]:
    """A state with fine-tuned tensors in it; those that belong nowhere stay under their own names, to be refused."""
    merged = dict(state)
    for name, tensor in tuned.items():
        target, _, side = name.rpartition(".")
        is_pair = side in SIDES and target in state and all(f"{target}.{s}" in tuned for s in SIDES)
        if not is_pair:
            merged[name] = tensor
        elif side == SIDES[0]:
            merged[target] = state[target] + lora_scale * (tuned[f"{target}.{SIDES[1]}"] @ tensor)
    return merged
