"""Operators of several steps said in those of one: softmax, norms, attention, recurrence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # the usual name
from torch import Tensor

from xai_cli.operators.elementary import add, bilinear, linear, masked_fill, matmul, mul, sub
from xai_cli.operators.rules import NoRuleError, Rules, depends


def softmax(rules: Rules, x: Tensor, dim: int | None = None, *rest: Any, **settings: Any) -> Tensor:
    return rules.softmax(*_typed(x, dim, *rest, **settings))


def log_softmax(rules: Rules, x: Tensor, dim: int | None = None, *rest: Any, **settings: Any) -> Tensor:
    return rules.log_softmax(*_typed(x, dim, *rest, **settings))


def _typed(
    x: Tensor, dim: int | None, *rest: Any, dtype: torch.dtype | None = None, _stacklevel: int = 3
) -> tuple[Tensor, int]:
    """What a softmax is taken of, and along which axis; old code leaves the axis to torch."""
    dim = (0 if x.ndim in (0, 1, 3) else 1) if dim is None else dim
    # `torch.softmax` takes the type by place, `F.softmax` behind a number.
    dtype = next((each for each in rest if isinstance(each, torch.dtype)), dtype)
    return x if dtype is None else x.to(dtype), dim


def logsumexp(rules: Rules, x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    """What the logarithm of the softmax lacks of `x`, the same all along the axis."""
    if not isinstance(dim, int):
        raise NoRuleError("logsumexp over several axes")
    return sub(rules, x, rules.log_softmax(x, dim)).mean(dim, keepdim)


def layer_norm(
    rules: Rules, x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5, *_: Any,
) -> Tensor:  # fmt: skip
    """Normalised over the last axes, scaled and shifted."""
    axes = tuple(range(-len(normalized_shape), 0))
    return _scaled(rules, rules.normalise(x, axes, eps, centred=True), weight, bias)


def rms_norm(
    rules: Rules, x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """As `layer_norm`, without the mean and the shift."""
    axes = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return _scaled(rules, rules.normalise(x, axes, eps, centred=False), weight, None)


def group_norm(
    rules: Rules, x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5, *_: Any,
) -> Tensor:  # fmt: skip
    """Normalised over groups of channels, scaled and shifted per channel."""
    groups = x.reshape(len(x), num_groups, -1)
    normal = rules.normalise(groups, (-1,), eps, centred=True).reshape(x.shape)
    return _scaled(rules, normal, *(None if each is None else _over_channels(each, x) for each in (weight, bias)))


def instance_norm(
    rules: Rules, x: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None,
    weight: Tensor | None = None, bias: Tensor | None = None, use_input_stats: bool = True, momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Normalised over each channel alone, or by running statistics."""
    if not use_input_stats:
        return batch_norm(rules, x, running_mean, running_var, weight, bias, eps=eps)
    return group_norm(rules, x, x.shape[1], weight, bias, eps)


def batch_norm(
    rules: Rules, x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Normalised by running statistics: an affine map."""
    if training or running_mean is None or running_var is None:
        raise NoRuleError("batch_norm over the pictures of a batch")
    scale = (running_var + eps).rsqrt() * (1 if weight is None else weight)
    shift = -running_mean * scale + (0 if bias is None else bias)
    return rules.affine(x, _over_channels(scale, x), _over_channels(shift, x))


def normalize(rules: Rules, x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None) -> Tensor:
    return rules.quotient(
        x, rules.pointwise("clamp_min", lambda x: x.clamp_min(eps), norm(rules, x, p, dim, keepdim=True))
    )


def norm(
    rules: Rules, x: Tensor, p: Any = 2, dim: Any = None, keepdim: bool = False, out: None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """The Euclidean norm over some axes."""
    if p in ("fro", None):
        p = 2
    if p != 2:
        raise NoRuleError(f"norm of order {p}")
    axes = tuple(range(x.ndim)) if dim is None else dim
    return rules.pointwise("sqrt", torch.sqrt, rules.pointwise("square", torch.square, x).sum(axes, keepdim))


def variance(
    rules: Rules, x: Tensor, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *,
    correction: float | None = None,
) -> Tensor:  # fmt: skip
    """The variance over some axes, by mean and squares."""
    if isinstance(dim, bool):  # `x.var(False)` is the biased variance of all numbers
        dim, unbiased = None, dim
    axes = tuple(range(x.ndim)) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    count = math.prod(x.shape[axis] for axis in axes)
    taken = 1.0 if correction is None else correction
    squares = rules.pointwise("square", torch.square, x - x.mean(axes, keepdim=True))
    return squares.sum(axes, keepdim) / (count - (taken if unbiased is None else unbiased))


def deviation(rules: Rules, x: Tensor, *rest: Any, **settings: Any) -> Tensor:
    return rules.pointwise("sqrt", torch.sqrt, variance(rules, x, *rest, **settings))


def _scaled(rules: Rules, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if bias is None:
        return x if weight is None else x * weight
    return rules.affine(x, torch.ones_like(bias) if weight is None else weight, bias)


def _over_channels(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (x.ndim - 2))


# Attention and recurrence


def attention(
    rules: Rules, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """`scaled_dot_product_attention`."""
    if enable_gqa:
        key, value = (each.repeat_interleave(query.shape[-3] // each.shape[-3], -3) for each in (key, value))
    if is_causal:
        shape = query.shape[-2], key.shape[-2]
        attn_mask = torch.ones(shape, dtype=torch.bool, device=query.device).tril()
    return _attended(rules, query, key, value, attn_mask, scale)[0]


def _attended(
    rules: Rules, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """What is attended to, and the weights; a mask is added, or true where a query may look."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = bilinear(rules, torch.matmul, query * scale, key.transpose(-2, -1))
    if mask is not None:
        boolean = mask.dtype == torch.bool
        scores = masked_fill(rules, scores, ~mask, float("-inf")) if boolean else add(rules, scores, mask)
    weights = rules.softmax(scores, -1)
    return matmul(rules, weights, value), weights


def multi_head_attention(
    rules: Rules, query: Tensor, key: Tensor, value: Tensor, embed_dim_to_check: int, num_heads: int,
    in_proj_weight: Tensor | None, in_proj_bias: Tensor | None, bias_k: Tensor | None, bias_v: Tensor | None,
    add_zero_attn: bool, dropout_p: float, out_proj_weight: Tensor, out_proj_bias: Tensor | None, training: bool = True,
    key_padding_mask: Tensor | None = None, need_weights: bool = True, attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False, q_proj_weight: Tensor | None = None, k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None, static_k: Tensor | None = None, static_v: Tensor | None = None,
    average_attn_weights: bool = True, is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """`multi_head_attention_forward` of `nn.MultiheadAttention`; sequence first, as that function takes it."""
    if any(each is not None for each in (bias_k, bias_v, key_padding_mask, static_k, static_v)) or add_zero_attn:
        raise NoRuleError("multi_head_attention_forward with added keys or padding masks")
    if use_separate_proj_weight:
        weights: Sequence[Tensor | None] = (q_proj_weight, k_proj_weight, v_proj_weight)
    else:
        assert in_proj_weight is not None
        weights = in_proj_weight.chunk(3)
    biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    length, batch, width = query.shape
    # Pictures first: so every part of the computation keeps them apart.
    q, k, v = (
        linear(rules, each.transpose(0, 1), weight, bias).unflatten(-1, (num_heads, -1)).transpose(1, 2)  # type: ignore[arg-type]
        for each, weight, bias in zip((query, key, value), weights, biases, strict=True)
    )
    if attn_mask is not None:
        attn_mask = ~attn_mask if attn_mask.dtype == torch.bool else attn_mask  # here true forbids
        attn_mask = attn_mask.unflatten(0, (batch, num_heads)) if attn_mask.ndim == 3 else attn_mask
    heads, looks = _attended(rules, q, k, v, attn_mask)
    out = linear(rules, heads.transpose(1, 2).reshape(batch, length, width), out_proj_weight, out_proj_bias)
    looks = looks.mean(1) if average_attn_weights else looks
    return out.transpose(0, 1), looks if need_weights else None


def lstm(
    rules: Rules, x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor], has_biases: bool, num_layers: int,
    dropout: float, train: bool, bidirectional: bool, batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`nn.LSTM` step by step."""
    steps = list((x if batch_first else x.transpose(0, 1)).unbind(1))
    directions, size = 1 + bidirectional, 4 if has_biases else 2
    if len(weights) != num_layers * directions * size:
        raise NoRuleError("lstm with projections")
    ends = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            place = layer * directions + direction
            parts = weights[place * size : (place + 1) * size]
            run, end = _lstm_run(rules, steps[:: 1 - 2 * direction], [each[place] for each in state], parts)
            outputs.append(run[:: 1 - 2 * direction])
            ends.append(end)
        steps = [torch.cat(each, -1) for each in zip(*outputs, strict=True)]
    out = torch.stack(steps, 1)
    hidden, cell = (torch.stack(each) for each in zip(*ends, strict=True))
    return out if batch_first else out.transpose(0, 1), hidden, cell


def _lstm_run(
    rules: Rules, steps: Sequence[Tensor], state: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
    (hidden, cell), outputs = state, []
    input_bias, hidden_bias = weights[2:] if len(weights) == 4 else (None, None)
    for x in steps:
        gates = linear(rules, x, weights[0], input_bias)
        gates = add(rules, gates, linear(rules, hidden, weights[1], hidden_bias) if depends(hidden)
                    else F.linear(hidden, weights[1], hidden_bias))  # fmt: skip
        i, f, g, o = gates.chunk(4, -1)
        i, f, o = (rules.pointwise("sigmoid", torch.sigmoid, each) for each in (i, f, o))
        g = rules.pointwise("tanh", torch.tanh, g)
        cell = add(rules, mul(rules, f, cell), mul(rules, i, g))
        hidden = mul(rules, o, rules.pointwise("tanh", torch.tanh, cell))
        outputs.append(hidden)
    return outputs, (hidden, cell)
