"""A small byte-level transformer: pre-norm, rotary positions, causal attention, head tied to the embedding.

B = sequences of a batch, T = their length, C = width, A = heads, D = C / A.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = 256  # every byte value
MLP_RATIO = 4
ROTARY_BASE = 10_000.0  # RoFormer, arXiv:2104.09864, eq. 15
INIT_STD = 0.02  # GPT-2's


class ByteTransformer(nn.Module):
    """Predict the next byte of a text.

    The matrices are all of the parameters (norms have no gain), each is at least one chunk of 4096 values from
    width 64 on. Dropout is absent: a swarm sees too little of its data twice.
    """

    rotary: Tensor  # (2, context, D/2) float32, cos and sin of the angle of each position

    def __init__(self, width: int, layers: int, heads: int, context: int) -> None:
        """width: C, a multiple of 2 * heads.   context: the longest T.   Raises ValueError for impossible sizes."""
        super().__init__()
        if min(width, layers, heads, context) < 1 or width % (2 * heads):
            raise ValueError(f"width {width} must be a multiple of twice {heads} heads; all sizes are at least 1")
        self.context = context
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(Block(width, heads, depth=layers) for _ in range(layers))
        nn.init.normal_(self.embedding.weight, std=INIT_STD)
        self.register_buffer("rotary", rotary_table(context, width // heads), persistent=False)

    def forward(self, text: Tensor) -> Tensor:
        """text: (B, T) int64, T <= context.   returns: (B, T, 256), scores of the byte after each position."""
        x = self.embedding(text)  # (B, T, C)
        for block in self.blocks:
            x = block(x, self.rotary[:, : text.shape[1]])
        return functional.linear(normalize(x), self.embedding.weight)


class Block(nn.Module):
    """Attention, then a squared-ReLU MLP, each on the normalised stream and added back to it."""

    def __init__(self, width: int, heads: int, depth: int) -> None:
        """depth: blocks in the model; what is added back starts smaller the more of them there are (GPT-2)."""
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, MLP_RATIO * width, bias=False)
        self.down = nn.Linear(MLP_RATIO * width, width, bias=False)
        for layer in (self.qkv, self.up):
            nn.init.normal_(layer.weight, std=INIT_STD)
        for layer in (self.out, self.down):
            nn.init.normal_(layer.weight, std=INIT_STD / math.sqrt(2 * depth))

    def forward(self, x: Tensor, rotary: Tensor) -> Tensor:
        """x: (B, T, C).   rotary: (2, T, D/2).   returns: (B, T, C)."""
        batch, length, width = x.shape
        qkv = self.qkv(normalize(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, A, T, D) each
        y = functional.scaled_dot_product_attention(rotate(q, rotary), rotate(k, rotary), v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        # ReLU^2 (Primer, arXiv:2109.08668): as good as GELU and cheaper on a CPU
        hidden = functional.relu(self.up(normalize(x))).square()  # (B, T, 4C)
        added: Tensor = self.down(hidden)
        return x + added


def normalize(x: Tensor) -> Tensor:
    """RMSNorm without a gain, over the last dimension."""
    normalized: Tensor = functional.rms_norm(x, x.shape[-1:])
    return normalized


def rotary_table(context: int, head_width: int) -> Tensor:
    """returns: (2, context, head_width / 2) float32, cos and sin of position * base^(-2i / head_width)."""
    rates = ROTARY_BASE ** (-torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)
    angles = torch.arange(context, dtype=torch.float32)[:, None] * rates
    return torch.stack((angles.cos(), angles.sin()))


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + D/2}) by the angle of its position. x: (B, A, T, D).   rotary: (2, T, D/2)."""
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
