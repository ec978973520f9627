"""Every operator of the table, called as a net would: its plain meaning is torch's own, and its account closes."""

from __future__ import annotations

import ast

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import assert_close
from nets import seeded
from relevance import Net, relevance_of
from torch import Tensor, nn

from xai_cli.operators.mode import OperatorMode, UnruledError
from xai_cli.operators.rules import Rules
from xai_cli.operators.table import CONSTANT, LINEAR, RULED

# Calls on three pictures `x` `(3, 4, 6, 6)`. Of these are `m`, one matrix of one picture, `t`, tokens `(3, 9, 4)`, and
# `p`, all positive; `c(...)` is a constant of that shape.
LINEAR_CALLS = """
x.mT, x.mH, x.real, x.data, m.T, m.H, m.t(), m.diag(), m.trace(), x.tril(), x.triu(), -x, +x, x.clone()
x.contiguous(), x.float(), x.double(), x.cpu(), x.detach(), x.ravel(), x.squeeze(), x.to(torch.float64)
x.type(torch.float64), x.type_as(x), x.view_as(x), x.reshape_as(x), x.expand_as(x), x.view(3, -1), x.reshape(3, -1)
x.unflatten(1, (2, 2)), torch.flatten(input=x, start_dim=1), x.unsqueeze(1), x.clone().unsqueeze_(1)
x.permute(0, 2, 3, 1), x.transpose(1, 2), x.movedim(1, 2), x.roll(1, 2), x.flip(1), x.fliplr(), x.flipud()
x.rot90(1, (2, 3)), x[:, [2, 0], 1:, None], x[:, None].expand(3, 2, 4, 6, 6), x[:, None].broadcast_to((3, 2, 4, 6, 6))
torch.broadcast_tensors(c(6), x)[1], x.repeat(1, 2, 1, 1), x.tile((1, 2)), x.repeat_interleave(2, 1), x.select(1, 2)
x.narrow(1, 1, 2), x.index_select(1, torch.tensor([2, 0, 2])), x.gather(1, first), x.take_along_dim(first, 1)
x.take(torch.tensor([1, 99])), x.masked_select(torch.arange(6) > 2), x.unbind(1)[2], x.chunk(2, 1)[1]
x.split(2, 1)[1], x.split_with_sizes((1, 3), 1)[1], x.tensor_split(2, 1)[1], x.hsplit(2)[1], x.vsplit(3)[1]
x.dsplit(2)[1], x.as_strided((3, 4), (144, 36)), x.diagonal(0, 2, 3), F.unfold(x, 2)
F.fold(F.unfold(x, 2), (6, 6), 2), F.pixel_shuffle(x, 2), F.pixel_unshuffle(x, 2), torch.channel_shuffle(x, 2)
F.interpolate(x, scale_factor=1.5, mode="bicubic"), x.mean((2, 3)), x.mean(axis=1, keepdims=True), x.sum(1)
x.nanmean(1), x.cumsum(1), F.avg_pool1d(t, 2), F.avg_pool2d(x, 3, 2, 1), F.avg_pool3d(x, 2)
F.adaptive_avg_pool1d(t, 2), F.adaptive_avg_pool2d(x, 4), F.adaptive_avg_pool3d(x, 2), F.dropout(x, 0.5, False)
F.dropout1d(t, 0.5, False), F.dropout2d(x, 0.5, False), F.dropout3d(x.clone(), 0.5, False, True)
F.alpha_dropout(x, 0.5, False), F.feature_alpha_dropout(x, 0.5, False), torch.atleast_1d(x), torch.atleast_2d(x)
torch.atleast_3d(x), torch.meshgrid(m[0], m[1], indexing="ij")[1]
"""
# They need another device, or lose digits.
UNCALLED = {"cuda", "half", "bfloat16"}

RULED_CALLS = """
F.relu(x), F.relu6(x), F.leaky_relu(x, 0.2), F.rrelu(x), F.elu(x, 0.5), F.selu(x), F.celu(x), F.silu(x), F.mish(x)
F.hardswish(x), F.hardsigmoid(x), F.hardtanh(x, -0.5, 1.5), F.threshold(x, 0.1, 0.3), F.prelu(x, c(4)), F.glu(x, 1)
F.gelu(x), F.gelu(x, approximate="tanh"), F.softplus(x, 2), F.softsign(x), F.logsigmoid(x), F.hardshrink(x)
F.softshrink(x, 0.3), F.tanhshrink(x), F.relu(x - 0.3, inplace=True), x.sigmoid(), x.tanh(), x.exp(), x.expm1()
x.abs(), x.square(), x.sin(), x.cos(), x.atan(), x.sinh(), x.cosh(), x.asinh(), x.erf(), x.erfc(), x + p.log()
x + p.log1p(), x + p.log2(), x + p.log10(), p.sqrt(), x * p.rsqrt(), x + p.reciprocal(), (x / 9).tan(), (x / 9).asin()
(x / 9).acos(), (x / 9).atanh(), x.sign() * x.abs().sqrt(), F.relu(x).sqrt(), x.clamp(-1, 0.5), x.clamp(min=0.1)
x.clip(max=1), x.clamp_min(0.2), x.clamp_max(-0.2), x.clamp(c(6), c(6) + 1), x**2, x.pow(3), p**0.5, x * p**-0.5
x + 1 / p**2, 2**x, torch.pow(2, x), p ** torch.tensor(1.5), F.linear(t, c(5, 4), c(5)), F.linear(t, c(5, 4))
t @ c(4, 5), c(5, 9) @ t, t.__rmatmul__(c(5, 9)), t @ t.mT, torch.matmul(t, other=t.mT), torch.bmm(t, t.mT)
t.flatten(1).mm(c(36, 2)), t.flatten(1).mv(c(36)), t.flatten(1) @ c(36), torch.einsum("bnc,dc->bnd", t, c(5, 4))
torch.einsum("bnc,bmc->bnm", [t, t]), torch.einsum("bnc->bcn", t)
torch.addmm(c(2), t.flatten(1), c(36, 2), beta=0.5, alpha=2), torch.baddbmm(c(3, 9, 9), t, t.mT)
F.conv1d(t, c(5, 9, 2), c(5)), F.conv2d(input=x, weight=c(8, 2, 3, 3), bias=c(8), stride=2, padding=1, groups=2)
F.conv2d(x, c(5, 4, 3, 3), padding="same"), F.conv2d(x, c(5, 4, 3, 3), dilation=2)
F.conv3d(x[:, None], c(2, 1, 2, 2, 2))
F.conv2d(x.reshape(1, 12, 6, 6), x[:, :, :3, :3].reshape(12, 1, 3, 3), groups=12).reshape(3, 4, 4, 4)
F.conv_transpose1d(t, c(9, 2, 2), c(2)), F.conv_transpose2d(x, c(4, 3, 2, 2), c(6), 2, 1, 1, 2)
F.conv_transpose3d(x[:, None], c(1, 2, 2, 2, 2), c(2)), x + x.relu(), x + 1, 1 + x, x + c(6, 6), x.add(c(6), alpha=2)
torch.add(x, other=x), x + torch.arange(6), sum([x, x]), x.float() + torch.tensor(0.5, dtype=torch.float64), x - c(6)
c(6) - x, 1 - x, torch.rsub(x, c(6), alpha=2), x - x.abs(), x * 2, x * c(6), x * x.sigmoid(), x * x
x * x.mean((2, 3), keepdim=True).sigmoid(), x / 2, x / c(6), x / p, 1 / p, c(6) / p, torch.div(x, p)
torch.div(x, 0.4, rounding_mode="floor") + x, torch.addcmul(x, x, c(6), value=0.3), torch.addcmul(c(6), x, x)
torch.lerp(x, x.abs(), 0.3), torch.lerp(c(6), x, c(6)), torch.lerp(x, c(6), x.sigmoid())
torch.cat([x, c(3, 1, 6, 6)], 1), torch.cat((x, x.relu()), dim=1), torch.stack([x, c(3, 4, 6, 6)], 1)
torch.hstack([x, x]), torch.vstack(x.split(1)), torch.dstack([x, c(3, 4, 6, 6)]), torch.column_stack([x, x])
torch.where(x > 0, x, c(6)), torch.where(x > 0, 0.5, x), x.where(x > 0, x * 2), torch.where(x > 0, x, -x)
x.masked_fill(x > 0.5, 0.3), x.clone().masked_fill_(x > 0.5, 0.3), written(x.clone(), x), written(c(3, 4, 6, 6), x)
F.pad(x, (1, 1, 1, 0)), F.pad(x, (1, 1), value=0.5), F.pad(x, (1, 1, 1, 1), mode="reflect")
torch.constant_pad_nd(x, (1, 1), 2), F.grid_sample(x, c(3, 5, 5, 2), align_corners=False), torch.maximum(x, c(6))
torch.minimum(x, -x), torch.max(x, other=c(6)), torch.max(x, x.roll(1, 1)), torch.min(x, c(6)), x.max(1)[0]
x.max(dim=1, keepdim=True).values, x.min(1)[0], x.min(-1, True)[0], x.amax(1), x.amax((2, 3), keepdim=True)
x.amin(dim=1), F.max_pool1d(t, 2), F.max_pool2d(x, 3, 2, 1), F.max_pool3d(x, 2), F.max_pool2d(x, 2, ceil_mode=True)
F.max_pool1d(t, 2, return_indices=True)[0], F.max_pool2d(x, 2, return_indices=True)[0]
F.max_pool3d(x, 2, return_indices=True)[0], F.adaptive_max_pool1d(t, 2, True)[0], F.adaptive_max_pool2d(x, 3, True)[0]
F.adaptive_max_pool3d(x, 2, return_indices=True)[0], F.adaptive_max_pool1d(t, 2)
F.adaptive_max_pool2d(x, 4), F.adaptive_max_pool3d(x, 2), x.softmax(-1)
F.log_softmax(x, 1), (x * 99).log_softmax(-1), x.logsumexp(2), torch.logsumexp(x, 1, True)
F.softmax(x, dim=1), torch.softmax(x, axis=1), torch.softmax(x, -1, torch.float64), F.softmax(x * 5, 1) @ x
F.layer_norm(x, (6,)), F.layer_norm(x, (6, 6), c(6, 6), c(6, 6), 1e-3), F.layer_norm(t, (4,), bias=c(4))
torch.layer_norm(t, (4,), c(4), None, 1e-5, False), F.rms_norm(x, (6,), c(6)), F.rms_norm(x, (6, 6), eps=0.1)
F.group_norm(x, 2, c(4), c(4)), F.group_norm(t, 3, None, c(9)), F.instance_norm(x, weight=c(4), bias=c(4))
F.instance_norm(x, c(4), c(4) + 3, use_input_stats=False), F.batch_norm(x, c(4), c(4) + 3, c(4), c(4))
F.batch_norm(x, c(4), c(4) + 3), F.normalize(x), F.normalize(x, dim=(2, 3)), x * x.norm(dim=1, keepdim=True)
torch.norm(x, dim=1), torch.linalg.vector_norm(x, ord=2, dim=1), x.norm(2, (1, 2)), x.var(1)
x.var((2, 3), keepdim=True), x.var(1, False), x.var(dim=1, correction=0), x.var(axis=1), x.std(1)
x.std((1, 2), unbiased=False), x.std(1, True, True), torch.std(x, dim=-1, keepdim=True), attended(x)
attended(x, attn_mask=c(36, 36)), attended(x, attn_mask=c(36, 36) > 0.1), attended(x, is_causal=True)
attended(x, scale=2.0), attended(x, 4, 2, enable_gqa=True), attended(x, 2, 2, attn_mask=c(3, 1, 36, 36)), mixed(x)
mixed(x, c(9, 9)), mixed(x, c(9, 9) > 0.2), mixed(x, c(6, 9, 9)), mixed(x, weights=True), lstm(t, "batch_first")
lstm(t, "bidirectional"), lstm(t, "bias")
"""

# Their results mix pictures, so only all pictures together have an account.
MIXING_CALLS = """
x.max() + x, x + x.min(), x + x.var(False), x + x.std(), x + torch.norm(x), F.linear(t, t[0], t[1, :, 0])
F.linear(t, c(9, 4), t[0, :, 0]), F.conv2d(x, c(3, 4, 3, 3), x[0, :3, 0, 0]), F.conv2d(x, x[:2, :, :2, :2], c(2))
"""
CONSTANT_CALLS = """
x.floor(), x.ceil(), x.round(), x.trunc(), x.sign(), x.sgn(), torch.heaviside(x, c(6)), x.floor_divide(2)
x.clone().round_(), x > 0, x.long(), x.argmax(1), torch.zeros_like(x), x.new_ones(3), x.isnan(), x.int(), x == 1
x.argsort(1)
"""


def fixed(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64) / 2


def attended(x: Tensor, heads: int = 1, key_heads: int = 1, **settings: object) -> Tensor:
    counts = enumerate((heads, key_heads, key_heads))
    parts = [x.roll(i, 1).flatten(2).mT[:, None].repeat(1, count, 1, 1) for i, count in counts]
    return F.scaled_dot_product_attention(*parts, **settings)


def mixed(x: Tensor, mask: Tensor | None = None, weights: bool = False) -> Tensor:
    tokens = F.avg_pool2d(x, 2).flatten(2).permute(2, 0, 1)
    out = F.multi_head_attention_forward(
        tokens, tokens, tokens, 4, 2, fixed(12, 4), fixed(12), None, None, False, 0.0, fixed(4, 4), fixed(4),
        training=False, need_weights=weights, attn_mask=mask,
    )  # fmt: skip
    return out[1] if weights else out[0].transpose(0, 1)


def lstm(tokens: Tensor, kind: str) -> Tensor:
    layer = LSTMS[kind]
    return layer(tokens)[0] if layer.batch_first else layer(tokens.transpose(0, 1))[0].transpose(0, 1)


def written(buffer: Tensor, x: Tensor) -> Tensor:
    buffer[:, 1] = 0.5
    buffer[:, 2, 1:] = x[:, 0, 1:] * 2
    return buffer


def calls(text: str) -> list[str]:
    """The expressions of a text, each of whose lines is a tuple of them."""
    return [ast.unparse(call) for line in text.split("\n")[1:-1] for call in ast.parse(f"({line},)").body[0].value.elts]


def result(call: str, x: Tensor) -> Tensor:
    first = torch.zeros(3, 1, 6, 6, dtype=torch.long)
    tokens = F.avg_pool2d(x, 2).flatten(2).mT
    return eval(call, globals() | {
        "x": x, "m": x[0, 0], "t": tokens, "p": x.square() + 1.1, "c": fixed, "first": first,
    })  # fmt: skip


class Seen(OperatorMode):
    """Notes the names of what it treats."""

    def __init__(self) -> None:
        super().__init__(nn.Identity(), Rules())
        self.names: set[str] = set()

    def _treated(self, name, *call):
        self.names.add(name)
        return super()._treated(name, *call)


LSTM_SETTINGS = {"batch_first": True, "bidirectional": True, "bias": False, "proj_size": 2}
LSTMS = {
    kind: seeded(lambda kind=kind: nn.LSTM(4, 3, 2, **{kind: LSTM_SETTINGS[kind]})).double().requires_grad_(False)
    for kind in LSTM_SETTINGS
}
X = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("call", calls(LINEAR_CALLS))
def test_what_needs_no_rule_is_linear(call):
    x, y = X, X.flip(0) ** 2
    together = result(call, 2 * x - 3 * y)
    assert_close(together, 2 * result(call, x) - 3 * result(call, y), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("call", calls(RULED_CALLS + MIXING_CALLS[1:] + LINEAR_CALLS[1:]))
def test_the_plain_meaning_is_torchs_own(call):
    plain, ruled = (X.clone().requires_grad_() for _ in range(2))
    expected = result(call, plain)
    with OperatorMode(nn.Identity(), Rules()) as mode:
        found = mode.finished(result(call, ruled))
    assert found.dtype == expected.dtype
    assert_close(found, expected, rtol=1e-12, atol=1e-12)
    if expected.requires_grad:
        weights = torch.rand_like(expected)
        gradients = [
            torch.autograd.grad((weights * y).sum(), x)[0].nan_to_num(0, 0, 0)
            for y, x in ((found, ruled), (expected, plain))
        ]
        assert_close(*gradients, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("composite", ["epsilon", "attnlrp"])
@pytest.mark.parametrize("call", calls(RULED_CALLS))
def test_the_account_of_each_picture_closes(call, composite):
    passed = relevance_of(Net(lambda x: result(call, x)), X, composite)
    assert_close(passed.output, result(call, X), rtol=1e-12, atol=1e-12)
    assert passed.relevance.isfinite().all()
    assert_close(passed.gap, torch.zeros(3), rtol=0, atol=1e-9 if passed.output.dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("call", calls(MIXING_CALLS))
def test_the_account_of_pictures_that_are_mixed_closes_as_a_whole(call):
    gap = relevance_of(Net(lambda x: result(call, x)), X).gap
    assert_close(gap.sum(), 0.0, rtol=0, atol=1e-9)


@pytest.mark.parametrize("call", calls(CONSTANT_CALLS))
def test_what_is_constant_neither_depends_on_the_picture_nor_changes_it(call):
    x = X.clone().requires_grad_()
    with OperatorMode(nn.Identity(), Rules()):
        found = result(call, x)
    assert not found.requires_grad
    assert_close(found, result(call, X), rtol=0, atol=0)
    assert torch.equal(x, X)


def test_every_operator_of_the_table_is_called_here():
    seen = Seen()
    with seen:
        for call in calls(RULED_CALLS + LINEAR_CALLS[1:] + MIXING_CALLS[1:]):
            result(call, X.clone().requires_grad_())
    assert RULED.keys() - seen.names == set()
    assert LINEAR - seen.names == UNCALLED
    assert not LINEAR & CONSTANT
    assert not (LINEAR | CONSTANT) & RULED.keys()


@pytest.mark.parametrize(
    ("call", "form"),
    [
        ("torch.einsum('bnc,dc,ec->bnde', t, c(5, 4), c(6, 4))", "einsum of 3 operands"),
        ("x ** x.abs()", "pow of two operands that depend on the picture"),
        ("F.normalize(x, p=1.0)", "norm of order 1.0"),
        ("F.batch_norm(x, None, None, training=True)", "batch_norm over the pictures of a batch"),
        ("F.grid_sample(x, x[..., :2], align_corners=False)", "grid_sample at places that depend on the picture"),
        ("lstm(t, 'proj_size')", "lstm with projections"),
        ("x.sort(1)[0]", "sort"),
        ("F.softmin(x, 1)", "softmin"),
        ("x.cumprod(1)", "cumprod"),
        ("torch.special.gammaln(p)", "special_gammaln"),
    ],
)
def test_what_has_no_rule_is_refused_or_keeps_its_plain_gradient(call, form):
    net, (plain, allowed) = Net(lambda x: result(call, x)), (X.clone().requires_grad_() for _ in range(2))
    with (
        pytest.raises(UnruledError, match=f"operator '{form}' in the model itself has no rule"),
        OperatorMode(net, Rules()),
    ):
        net(plain)
    with OperatorMode(net, Rules(), allow_unruled=True):
        found = net(allowed)
    gradients = [torch.autograd.grad(y.sum(), x)[0] for y, x in ((found, allowed), (net(plain), plain))]
    assert_close(*gradients, rtol=1e-9, atol=1e-11)
