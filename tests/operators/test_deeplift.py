"""Multipliers, in float64: their sum is the change of the score, and where nothing changes they are the gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the usual name
from helpers import assert_close
from nets import conv_net, random_input, seeded
from torch import nn

from xai_cli.operators.deeplift import DeepLift, Reference
from xai_cli.operators.mode import OperatorMode


def multipliers(net, x, start, *, reveal_cancel=False):
    """Of the first score: `m` in the shape of `x`, and the score's change `(B,)`."""
    net, reference = net.to(x.dtype).eval().requires_grad_(False), Reference(inputs_of_weights=reveal_cancel)
    with OperatorMode(net, reference):
        before = net(start.clone().requires_grad_())
    rules, x = DeepLift(reference), x.clone().requires_grad_()
    with OperatorMode(net, rules):
        after = net(x)
    rules.finish()
    (m,) = torch.autograd.grad(after[:, 0].sum(), x)
    assert_close(after, net(x), rtol=1e-12 if x.dtype == torch.float64 else 1e-5, atol=1e-12)
    return m, (after - before)[:, 0].detach()


def gap(net, x, start, **options):
    m, change = multipliers(net, x, start, **options)
    return float(((m * (x - start)).flatten(1).sum(1) - change).abs().max() / change.abs().max())


class Net(nn.Module):
    """A convolution, then `body` of its output and of `layers`, then a linear head."""

    def __init__(self, body, *layers, width):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(width, 2)
        self.body, self.layers = body, nn.ModuleList(make() for make in layers)

    def forward(self, x):
        return self.head(self.body(self.stem(x), *self.layers).flatten(1))


def net(body, *layers, width=4 * 8 * 8):
    return seeded(lambda: Net(body, *layers, width=width))


def tokens(x):
    return x.flatten(2).transpose(1, 2)


def attend(x, **options):
    q, k, v = tokens(3 * x), tokens(x.flip(2)), tokens(x.flip(3))
    return F.scaled_dot_product_attention(q, k, v, **options)


SMOOTH = {
    "gelu": net(lambda x: F.gelu(x)),
    "silu": net(lambda x, act: act(x), nn.SiLU),
    "sigmoid gate": net(lambda x: x * x.mean((2, 3), keepdim=True).sigmoid()),
    "square": net(lambda x: x * x),
    "softmax": net(lambda x: (3 * x).softmax(1)),
    "attention": net(lambda x: attend(x)),
    "masked attention": net(lambda x: attend(x, attn_mask=torch.ones(64, 64, dtype=torch.bool).tril())),
    "added mask": net(lambda x: attend(x, attn_mask=torch.zeros(64, 64).double().fill_diagonal_(-float("inf")))),
    "multi-head": net(lambda x, mha: mha(*[tokens(x)] * 3)[0], lambda: nn.MultiheadAttention(4, 2, batch_first=True)),
    "layer norm": net(lambda x, norm: norm(x), lambda: nn.LayerNorm(8)),
    "rms norm": net(lambda x: F.rms_norm(x, (8,))),
    "group norm": net(lambda x, norm: norm(x), lambda: nn.GroupNorm(2, 4)),
    "normalize": net(lambda x: F.normalize(x, dim=1)),
    "division": net(lambda x: x / (1 + x.square()) + 1 / (2 + x.cos())),
    "lstm": net(lambda x, rnn: rnn(tokens(x))[0], lambda: nn.LSTM(4, 4, batch_first=True)),
    "average pooling": net(lambda x: F.avg_pool2d(x.tanh(), 2), width=64),
    "cat": net(lambda x: torch.cat([x.tanh(), torch.ones_like(x)], 1), width=512),
    "residual, constant": net(lambda x: x + 2 * (x + 1).tanh()),
}  # fmt: skip
KINKED = {
    "relu": net(lambda x: F.relu(x)),
    "in place": net(lambda x, act: act(x) + x, lambda: nn.ReLU(inplace=True)),
    "reused": net(lambda x, act, conv: act(conv(act(x))), nn.ReLU, lambda: nn.Conv2d(4, 4, 1)),
    "prelu": net(lambda x, act: act(x), lambda: nn.PReLU(4)),
    "hardswish, abs, clamp": net(lambda x: F.hardswish(4 * x).abs().clamp(0.1, 1)),
    "max-pool after relu": net(lambda x: F.max_pool2d(x.relu(), 2), width=64),
    "overlapping max-pool": net(lambda x: F.max_pool2d(x, 3, 1, 1)),
    "adaptive max-pool": net(lambda x: F.adaptive_max_pool2d(x, 3), width=36),
    "amax, amin": net(lambda x: x.amax(1) + x.relu().amin(1), width=64),
    "maximum, minimum": net(lambda x: torch.maximum(x, x.flip(3)) * torch.minimum(x, x.square())),
    "max with places": net(lambda x: x.max(1).values, width=64),
    "conv net": conv_net(),
}
NETS = {**SMOOTH, **KINKED}


@pytest.mark.parametrize("reveal_cancel", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_contributions_sum_to_the_change_of_the_score(name, reveal_cancel):
    x, start = random_input(), random_input(4)[2:]
    start[:, :, :3] = x[:, :, :3]
    assert gap(NETS[name], x, start, reveal_cancel=reveal_cancel) < 1e-9
    assert gap(NETS[name], x, torch.zeros_like(x), reveal_cancel=reveal_cancel) < 1e-9


@pytest.mark.parametrize("name", SMOOTH)
def test_where_nothing_changes_multipliers_are_the_gradient(name):
    x = random_input().requires_grad_()
    m, change = multipliers(SMOOTH[name], x.detach(), x.detach())
    (gradient,) = torch.autograd.grad(SMOOTH[name](x)[:, 0].sum(), x)
    assert not change.any()
    assert_close(m, gradient, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("name", KINKED)
def test_where_nothing_changes_multipliers_are_finite(name):
    x = random_input()
    m, change = multipliers(KINKED[name], x, x, reveal_cancel=True)
    assert m.isfinite().all()
    assert not change.any()


@pytest.mark.parametrize("name", ["attention", "multi-head", "layer norm", "max-pool after relu", "lstm"])
def test_pictures_of_a_batch_do_not_meet(name):
    x, start = random_input(3), random_input(6)[3:]
    together = multipliers(NETS[name], x, start)[0]
    alone = [multipliers(NETS[name], x[i : i + 1], start[i : i + 1])[0] for i in range(3)]
    assert_close(together, torch.cat(alone), rtol=1e-9, atol=1e-12)


def test_relu_before_max_pool_equals_the_definition():
    """Up to the larger maximum the change lies at the place of the picture's; from there at that of the start's."""
    x, start = torch.randn(2, 500, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pool = nn.Sequential(nn.ReLU(), nn.Unflatten(1, (1, 8)), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(4, 1))
    m, _ = multipliers(pool, x, start)
    expected = torch.zeros_like(x)
    for row in range(500):
        for window, weight in enumerate(pool[-1].weight[0].tolist()):
            here, there = ([max(0, float(v)) for v in each[row, 2 * window :][:2]] for each in (x, start))
            top = max(*here, *there)
            expected[row, 2 * window + here.index(max(here))] += weight * (top - max(there))
            expected[row, 2 * window + there.index(max(there))] += weight * (max(here) - top)
    assert_close(m * (x - start), expected, rtol=1e-9, atol=1e-12)


def test_of_a_minimum_reveal_cancel_gives_each_operand_half():
    """`min(a, b) = a - relu(a - b)`, the paper's section 3.4; Rescale gives all to the smaller one."""

    class Minimum(nn.Module):
        def forward(self, x):
            return x[:, :1] - F.relu(F.linear(x, x.new_tensor([[1.0, -1.0]])))

    x = torch.tensor([[5.0, 2.0], [1.0, 4.0]], dtype=torch.float64)
    rescale, reveal_cancel = (
        x * multipliers(Minimum(), x, torch.zeros_like(x), reveal_cancel=each)[0] for each in (False, True)
    )
    assert_close(rescale, [[0, 2], [1, 0]], rtol=0, atol=1e-12)
    assert_close(reveal_cancel, [[1, 1], [0.5, 0.5]], rtol=0, atol=1e-12)


def test_reveal_cancel_equals_rescale_where_nothing_cancels():
    linear = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    x, start = random_input(), random_input(4)[2:]
    both = [multipliers(linear, x, start, reveal_cancel=each)[0] for each in (False, True)]
    assert_close(*both, rtol=1e-12, atol=1e-12)
    alone = nn.Sequential(nn.Flatten(), nn.Linear(1, 5), nn.GELU(), nn.Linear(5, 2))
    x, start = torch.linspace(-2, 2, 9).double()[:, None], torch.ones(9, 1).double() / 3
    both = [multipliers(alone, x, start, reveal_cancel=each)[0] for each in (False, True)]
    assert_close(*both, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_float32_bears_attention_that_moves_altogether(scale):
    x, start = random_input(dtype=torch.float32), random_input(4, dtype=torch.float32)[2:]
    assert gap(net(lambda x: (scale * x).softmax(1)), x, start) < 1e-5


@pytest.mark.parametrize("normed", [lambda x: F.layer_norm(x, (8, 8)), lambda x: F.normalize(x - x.mean(1, True))])
def test_float32_bears_norms_of_a_start_without_variance(normed):
    x = random_input(dtype=torch.float32)
    deep = net(
        lambda x, *convs: normed(convs[1](normed(convs[0](normed(x))))), *[lambda: nn.Conv2d(4, 4, 1, bias=False)] * 2
    )
    nn.init.zeros_(deep.stem.bias)
    assert gap(deep, x, torch.zeros_like(x)) < 1e-5


class Branch(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(x).flatten(1)


@pytest.mark.parametrize(
    "body",
    [
        lambda x: x.relu() if x.mean() > 0 else F.gelu(x),
        lambda x: x.relu() if x.mean() > 0 else x.relu().relu(),
        lambda x: x.relu().relu() if x.mean() > 0 else x.relu(),
        lambda x: F.pad(x.relu(), (0, 1)).relu() if x.mean() > 0 else F.pad(x.relu(), (1, 1)).relu(),
    ],
    ids=["another function", "less", "more", "another shape"],
)
def test_refuses_a_net_that_takes_other_steps_on_the_baseline(body):
    steps = nn.Sequential(nn.Unflatten(1, (3, 8, 8)), Branch(body))
    ones = torch.ones(1, 192, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="should call the same operators on the baseline and on the picture, found"):
        multipliers(steps, ones, -ones)
