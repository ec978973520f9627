"""Transformers whose attention is known: a small one written in three ways, and how to see into those of timm and
torchvision by plain autograd.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F  # noqa: N812  # the usual name
from torch import Tensor, nn
from torch.nn.functional import interpolate

WAYS = ("fused", "written out", "a layer of torch")
WIDTH, HEADS = 12, 2


class Block(nn.Module):
    """Attention and an MLP, each beside a residual branch; written out, it keeps its `weights` `(B, H, N, N)`."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.norm, self.mlp = nn.LayerNorm(WIDTH), nn.Sequential(nn.Linear(WIDTH, 20), nn.GELU(), nn.Linear(20, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm(x))
        return x + self.mlp(self.norm(x))

    def attend(self, x: Tensor) -> Tensor:
        if self.way == "a layer of torch":
            return self.attention(x, x, x, need_weights=False)[0]
        heads = F.linear(x, self.attention.in_proj_weight, self.attention.in_proj_bias)
        q, k, v = heads.unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        if self.way == "fused":
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            self.weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
            out = self.weights @ v
        return self.attention.out_proj(out.transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """16 patches of a picture of 8 x 8 behind a class token, `depth` blocks, three classes.

    `pools`: one learned query attends to the tokens in the end, and is read instead of the class token.
    """

    def __init__(self, way: str = "written out", depth: int = 2, *, pools: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.head = nn.Conv2d(3, WIDTH, 2, 2), nn.Linear(WIDTH, 3)
        self.token, self.places = (nn.Parameter(torch.randn(1, tokens, WIDTH)) for tokens in (1, 17))
        self.blocks = nn.ModuleList([Block(way) for _ in range(depth)])
        self.norm, self.pools = nn.LayerNorm(WIDTH), pools

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        for block in self.blocks:
            x = block(x)
        return self.tail(x)

    def tail(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        if not self.pools:
            return self.head(x[:, 0])
        self.weights = (3 * self.token @ x.mT).softmax(-1)[:, None]
        return self.head((self.weights @ x[:, None])[:, 0, 0])


def written_out(layer: nn.MultiheadAttention, seen: list[Tensor]) -> None:
    """Makes a layer of torch compute its self-attention step by step, and keep the weights in `seen`."""

    def forward(x: Tensor, *_: Tensor, need_weights: bool) -> tuple[Tensor, None]:
        heads = F.linear(x, layer.in_proj_weight, layer.in_proj_bias)
        q, k, v = heads.unflatten(2, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
        seen.append((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1))
        return layer.out_proj((seen[-1] @ v).transpose(1, 2).flatten(2)), None

    layer.forward = forward


@contextmanager
def seeing_attention(module: nn.Module) -> Iterator[list[Tensor]]:
    """While open, passes fill the list with the attention of every block of a ViT of timm or torchvision."""
    seen: list[Tensor] = []
    handles, layers = [], []
    for layer in module.modules():
        if isinstance(layer, nn.MultiheadAttention):
            layers.append(layer)
            written_out(layer, seen)
        elif hasattr(layer, "fused_attn"):
            layers.append(layer)
            layer.fused_attn = False
            handles.append(layer.attn_drop.register_forward_hook(lambda _layer, _inputs, out: seen.append(out)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers:
            vars(layer).pop("forward", None)


def enlarged(tokens: Tensor, side: int, size: int) -> Tensor:
    """A map `(B, size, size)` of what is said of `side` x `side` patches, `(B, N)`."""
    return interpolate(tokens.unflatten(1, (1, side, side)), (size, size), mode="bilinear", align_corners=False)[:, 0]
