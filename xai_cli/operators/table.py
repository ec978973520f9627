"""Which treatment each operator gets: none, because autograd is right for it, or one kind of `Rules`.

    LINEAR           no rule: linear in the picture, or moves numbers about
    CONSTANT         no rule: its result does not move with the picture
    RULED            operator -> how it is said in the kinds of `Rules`, composite functions in several of them

What stands nowhere is refused, and so is a form of a ruled operator that raises `NoRuleError`. A new operator is one
line here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # the usual name
from torch import Tensor

from xai_cli.operators.compound import (
    attention,
    batch_norm,
    deviation,
    group_norm,
    instance_norm,
    layer_norm,
    log_softmax,
    logsumexp,
    lstm,
    multi_head_attention,
    norm,
    normalize,
    rms_norm,
    softmax,
    variance,
)
from xai_cli.operators.elementary import (
    add,
    addcmul,
    addmm,
    convolution,
    div,
    einsum,
    extreme,
    glu,
    grid_sample,
    join,
    lerp,
    linear,
    masked_fill,
    matmul,
    maximum,
    minimum,
    mul,
    pad,
    pointwise,
    power,
    rdiv,
    rsub,
    selection,
    selection_with_places,
    setitem,
    sub,
    where,
)

# Of the operators below whose result does not move with the picture, these jump with it.
STEPS = frozenset(
    "eq ne lt le gt ge sign sgn heaviside floor ceil round trunc floordiv floor_divide logical_xor".split()  # noqa: SIM905
)
LINEAR = frozenset(
    """
    T mT H mH real data clone contiguous to type type_as float double half bfloat16 cpu cuda detach
    dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout
    view view_as reshape reshape_as flatten unflatten ravel squeeze unsqueeze permute transpose t movedim
    expand expand_as broadcast_to broadcast_tensors repeat tile repeat_interleave
    getitem select narrow index_select gather take_along_dim take masked_select
    unbind chunk split split_with_sizes tensor_split hsplit vsplit dsplit
    unfold fold as_strided diagonal diag tril triu roll flip fliplr flipud rot90
    pixel_shuffle pixel_unshuffle channel_shuffle
    mean sum nanmean cumsum trace positive interpolate
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    atleast_1d atleast_2d atleast_3d meshgrid
    """.split()  # noqa: SIM905  # a table reads better
)
CONSTANT = frozenset(
    """
    shape ndim dim size numel nelement dtype device layout stride storage_offset get_device element_size itemsize nbytes
    is_contiguous is_cuda is_cpu is_mps is_meta is_xla is_xpu is_floating_point is_complex is_signed is_sparse
    is_quantized is_nested is_leaf is_inference is_conj is_neg is_same_size dim_order has_names names version
    requires_grad retain_grad grad grad_fn output_nr backward_hooks register_hook
    item tolist numpy len contains iter bool int long short char byte format repr str hash data_ptr untyped_storage
    result_type eq ne lt le gt ge isnan isinf isfinite isclose allclose equal any all assert_async
    logical_and logical_or logical_not logical_xor argmax argmin argsort bincount count_nonzero nonzero
    sign sgn heaviside floor ceil round trunc floordiv rfloordiv floor_divide
    zeros_like ones_like empty_like full_like rand_like randn_like
    new_zeros new_ones new_full new_empty new_tensor one_hot bucketize searchsorted
    """.split()  # noqa: SIM905
)

_POINTWISE: dict[str, Callable[..., Tensor]] = {
    **{name: getattr(torch, name) for name in (
        "sigmoid", "tanh", "exp", "expm1", "log", "log1p", "log2", "log10", "sqrt", "rsqrt", "reciprocal", "square",
        "abs", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "atanh", "erf", "erfc",
        "clamp", "clamp_min", "clamp_max", "prelu",
    )},
    **{name: getattr(F, name) for name in (
        "relu", "relu6", "leaky_relu", "rrelu", "elu", "selu", "celu", "silu", "mish", "hardswish", "hardsigmoid",
        "hardtanh", "threshold", "gelu", "softplus", "softsign", "logsigmoid", "hardshrink", "softshrink", "tanhshrink",
    )},
}  # fmt: skip

RULED: dict[str, Callable[..., Any]] = {
    **{name: pointwise(name, function) for name, function in _POINTWISE.items()},
    "pow": power,
    "rpow": lambda rules, exponent, x: power(rules, x, exponent),
    "linear": linear,
    **{f"conv{axes}d": convolution(getattr(torch, f"conv{axes}d"), axes) for axes in (1, 2, 3)},
    **{f"conv_transpose{axes}d": convolution(getattr(torch, f"conv_transpose{axes}d"), axes) for axes in (1, 2, 3)},
    **dict.fromkeys(("matmul", "bmm", "mm", "mv"), matmul),
    "rmatmul": lambda rules, right, left: matmul(rules, left, right),
    "einsum": einsum,
    **dict.fromkeys(("addmm", "baddbmm"), addmm),
    "add": add,
    "sub": sub,
    "rsub": rsub,
    "mul": mul,
    "neg": lambda rules, x: mul(rules, x, -1),
    "div": div,
    "rdiv": rdiv,
    "addcmul": addcmul,
    "lerp": lerp,
    "cat": join(torch.cat),
    "stack": join(torch.stack),
    **{name: join(getattr(torch, name)) for name in ("hstack", "vstack", "dstack", "column_stack")},
    "where": where,
    "masked_fill": masked_fill,
    "setitem": setitem,
    "pad": pad,
    "constant_pad_nd": lambda rules, x, sides, value=0: pad(rules, x, sides, value=value),
    "grid_sample": grid_sample,
    "glu": glu,
    "maximum": maximum,
    "minimum": minimum,
    "max": extreme("max", maximum),
    "min": extreme("min", minimum),
    **{name: selection(name, getattr(torch, name)) for name in ("amax", "amin")},
    **{f"{kind}{axes}d": selection("max_pool", getattr(F, f"{kind}{axes}d"))
       for kind in ("max_pool", "adaptive_max_pool") for axes in (1, 2, 3)},
    **{f"{kind}{axes}d_with_indices": selection_with_places("max_pool", getattr(F, f"{kind}{axes}d_with_indices"))
       for kind in ("max_pool", "adaptive_max_pool") for axes in (1, 2, 3)},
    "softmax": softmax,
    "log_softmax": log_softmax,
    "logsumexp": logsumexp,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "group_norm": group_norm,
    "instance_norm": instance_norm,
    "batch_norm": batch_norm,
    "normalize": normalize,
    **dict.fromkeys(("norm", "linalg_vector_norm"), norm),
    "var": variance,
    "std": deviation,
    "scaled_dot_product_attention": attention,
    "multi_head_attention_forward": multi_head_attention,
    "lstm": lstm,
}  # fmt: skip
