from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the usual name
from helpers import assert_close
from torch import nn

from xai_cli.operators.attention import AttentionMaps
from xai_cli.operators.mode import OperatorMode

PICTURES, HEADS, TOKENS, WIDTH = 2, 3, 5, 4


class Attending(nn.Module):
    """Attention of tokens `(B, H, N, D)` among themselves, in one of many ways to write it."""

    def __init__(self, way):
        super().__init__()
        self.inner = nn.Identity()
        self.inner.forward = lambda x: way(x, 2 * x, x - 1)

    def forward(self, x):
        return self.inner(x)


def scores(q, k):
    return q @ k.transpose(-2, -1) * WIDTH**-0.5


def by_softmax(q, k, v):
    return scores(q, k).softmax(-1) @ v


def with_values_first(q, k, v):
    weights = F.softmax(scores(q, k), dim=-1)
    return (v.transpose(-2, -1) @ weights.transpose(-2, -1)).transpose(-2, -1)


def heads_beside_pictures(q, k, v):
    weights = F.dropout(torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT).mul(WIDTH**-0.5).softmax(2), 0.5, False)
    return torch.bmm(weights, v.flatten(0, 1)).unflatten(0, (PICTURES, HEADS))


def by_einsum(q, k, v):
    weights = torch.einsum("bhid,bhjd->bhij", q, k).mul(WIDTH**-0.5).softmax(-1)
    return torch.einsum("bjhd, bhij -> bihd", v.transpose(1, 2), weights).transpose(1, 2)


def by_exponentials_of_normalised(q, k, v):
    weights = 3 * scores(q, k).softmax(-1)
    return (weights / weights.sum(-1, keepdim=True)) @ v


WAYS = {
    "fused": F.scaled_dot_product_attention,
    "softmax": by_softmax,
    "values first": with_values_first,
    "heads beside pictures": heads_beside_pictures,
    "einsum": by_einsum,
    "normalised again": by_exponentials_of_normalised,
}


def met(way, x):
    module = Attending(way)
    rules = AttentionMaps(module, PICTURES)
    with OperatorMode(module, rules):
        return rules.met, module(x)


def tokens():
    generator = torch.Generator().manual_seed(0)
    shape = (PICTURES, HEADS, TOKENS, WIDTH)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_sees_the_same_attention_however_it_is_written(way):
    x = tokens()
    (attention,), out = met(way, x)
    expected = scores(x, 2 * x).softmax(-1)
    assert_close(attention.weights, expected, rtol=1e-12, atol=0)
    assert_close(attention.values.reshape(x.shape), x - 1, rtol=1e-12, atol=0)
    assert_close(out, expected @ (x - 1), rtol=1e-12, atol=0)
    assert attention.layer == "inner"


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_its_gradient_is_that_of_the_output(way):
    x = tokens()
    (attention,), out = met(way, x)
    mix = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(out, attention.weights, mix)
    assert_close(gradient, mix @ (x - 1).mT, rtol=1e-12, atol=1e-12)


def test_weights_mixed_over_heads_are_what_multiplies_the_values():
    mixer = torch.rand(HEADS, HEADS, dtype=torch.float64)

    def talking_heads(q, k, v):
        return F.linear(scores(q, k).softmax(-1).permute(0, 2, 3, 1), mixer).permute(0, 3, 1, 2) @ v

    x = tokens()
    (attention,), _ = met(talking_heads, x)
    expected = torch.einsum("gh,bhij->bgij", mixer, scores(x, 2 * x).softmax(-1))
    assert_close(attention.weights, expected, rtol=1e-12, atol=0)


def test_a_mask_is_in_the_weights():
    mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
    (attention,), _ = met(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask), tokens())
    assert (attention.weights == 0).sum() == PICTURES * HEADS * TOKENS * (TOKENS - 1) // 2


NO_ATTENTION = {
    "a softmax that gates": lambda q, k, v: q.softmax(1) * v,
    "a product without softmax": lambda q, k, v: scores(q, k) @ v,
    "a softmax made into something new": lambda q, k, v: torch.tanh(scores(q, k).softmax(-1)) @ v,
    "a sum over two axes": lambda q, k, v: torch.einsum("bhij,bhjd->bid", scores(q, k).softmax(-1), v),
}


@pytest.mark.parametrize("way", NO_ATTENTION.values(), ids=NO_ATTENTION)
def test_what_is_no_attention_is_left_alone(way):
    x = tokens()
    attention, out = met(way, x)
    assert attention == []
    assert_close(out, way(x, 2 * x, x - 1), rtol=1e-12, atol=0)
