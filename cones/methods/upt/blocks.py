"""The small networks that make prompts of prompts, (k, d) to (k, d)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Attentive(nn.Module):
    """The paper's light layer (arXiv 2210.07225, section 3.3): U' = SA(U) + LN(U), then FFN(LN(U')) + LN(U').

    The formula is second-hand; one head, and a feed-forward network as wide as the prompts, are the released code's.
    Without attention the second half is left, each prompt by itself: the ablation by an MLP.
    """

    def __init__(self, width: int, attends: bool) -> None:
        super().__init__()
        if attends:
            self.before = nn.LayerNorm(width)
            self.attention = nn.MultiheadAttention(width, 1, batch_first=True)
        self.attends = attends
        self.norm = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, prompts: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
        if self.attends:
            all_of_them = prompts[None]
            mixed, _ = self.attention(all_of_them, all_of_them, all_of_them, need_weights=False)
            prompts = mixed[0] + self.before(prompts)
        normed = self.norm(prompts)
        return self.ffn(normed) + normed


class Alone(nn.Module):
    """A Transformer layer that is given the prompts along its batch axis, so that each attends to itself alone.

    That is how MVLPT and the released code of UPT call theirs: their layers want the sequence first.
    """

    def __init__(self, layer: nn.TransformerEncoderLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, prompts: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
        return self.layer(prompts[None])[0]


def mvlpt_block(width: int) -> Alone:
    """MVLPT's: a layer of CLIP's own kind with one head (norms first, four times as wide inside, its GELU)."""
    return Alone(nn.TransformerEncoderLayer(width, 1, 4 * width, 0.0, _quick_gelu, norm_first=True))


def released_block(width: int) -> Alone:
    """The released code's: one head, norms last, a feed-forward network as wide as the prompts."""
    return Alone(nn.TransformerEncoderLayer(width, 1, width, 0.0))


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)
