"""The account of a net: what did not reach the pixels, in its category, for each picture of its own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import assert_close
from nets import random_input, seeded
from relevance import Net, relevance_of
from torch import nn

from xai_cli.operators.account import CATEGORIES, Account, constant

X = random_input(batch=4)


def flat_net(function, **layers) -> Net:
    return Net(lambda net, x: function(net, x.flatten(1)), **layers)


def head() -> nn.Linear:
    return seeded(lambda: nn.Linear(192, 3))


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(3)))


# Of each net: the one category that keeps anything, or none.
NETS = {
    "a linear layer without bias": (flat_net(lambda net, x: F.linear(x, net.head.weight), head=head()), None),
    "a bias": (flat_net(lambda net, x: net.head(x), head=head()), "biases"),
    "the shift of a norm": (flat_net(lambda net, x: net.norm(x), norm=nn.LayerNorm(192)), "biases"),
    "a batch norm": (Net(lambda net, x: net.norm(x), norm=nn.BatchNorm2d(3)), "biases"),
    "a position embedding": (flat_net(lambda net, x: x + net.place, place=parameter(192)), "tokens"),
    "a token": (flat_net(lambda net, x: torch.cat([net.token.expand(4, 2), x], 1), token=parameter(1, 2)), "tokens"),
    "a constant to choose": (Net(lambda x: torch.maximum(x, torch.tensor(0.3))), "rest"),
    "a constant put in": (Net(lambda x: x.masked_fill(x < 0, 0.5)), "tokens"),
    "an inverse": (Net(lambda x: 1 / (2 + x.square())), "tokens"),
    "an offset at zero": (Net(torch.exp), "rest"),
    "an offset cut off": (Net(lambda x: x.clamp(0.1, 1)), "rest"),
    "a softmax": (Net(lambda x: x.softmax(-1)), "softmax"),
    "an embedding of no tokens": (Net(lambda x: torch.cat([x.new_zeros(4, 0, 8, 8), x], 1)), None),
    "an activation": (Net(lambda x: F.gelu(x) + F.silu(x) + F.relu(x) + x.tanh() + x.abs()), None),
    "a gate": (Net(lambda x: x * x.mean((2, 3), keepdim=True).sigmoid()), None),
    "a LayerScale": (flat_net(lambda net, x: x + x.relu() * net.scale, scale=parameter(192)), None),
    "a selection": (Net(lambda x: F.max_pool2d(x, 2)), None),
    "a norm without shift": (Net(lambda x: F.layer_norm(x, (8,), weight=torch.ones(8, dtype=x.dtype))), None),
}
for module, _ in NETS.values():
    for name, value in module.named_parameters():
        torch.nn.init.normal_(value, generator=torch.Generator().manual_seed(len(name)))


@pytest.mark.parametrize(("net", "keeper"), NETS.values(), ids=NETS)
def test_what_is_kept_is_kept_in_its_category(net, keeper):
    passed = relevance_of(net, X)
    assert_close(passed.gap, torch.zeros(4), rtol=0, atol=1e-9)
    for category in CATEGORIES:
        kept = passed.kept[category].abs()
        # The stabiliser of the rule epsilon keeps a millionth.
        assert (kept > 1e-2).all() if category == keeper else (kept < 1e-4).all(), category


def test_a_mask_of_minus_infinity_keeps_nothing():
    mask = torch.zeros(8, 8).masked_fill(torch.ones(8, 8).triu(1) > 0, -float("inf"))
    for composite in ("attnlrp", "cp-lrp"):
        passed = relevance_of(Net(lambda x: F.scaled_dot_product_attention(x, x, x, mask.double())), X, composite)
        assert passed.relevance.isfinite().all()
        assert_close(passed.gap, torch.zeros(4), rtol=0, atol=1e-9)
        assert_close(passed.kept["tokens"], torch.zeros(4), rtol=0, atol=0)


def windowed(net, x):
    """Windows of each picture on the first axis, as in Swin, with a bias for each pair of places and a mask."""
    windows = net.stem(x).unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(-1, 16, 6)
    q, k, v = net.mixed(windows).reshape(-1, 16, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
    scores = q @ k.transpose(-2, -1) * 0.5 + net.places
    scores = scores.view(-1, 4, 2, 16, 16) + torch.zeros(4, 1, 16, 16).index_fill(0, torch.tensor(3), -100.0)
    out = (scores.view(-1, 2, 16, 16).softmax(-1) @ v).transpose(1, 2).reshape(-1, 16, 6)
    return net.head(net.norm(windows + out)).reshape(len(x), -1, 3).mean(1)


def swin() -> nn.Module:
    layers = {
        "stem": nn.Conv2d(3, 6, 3, padding=1),
        "mixed": nn.Linear(6, 18),
        "norm": nn.LayerNorm(6),
        "head": nn.Linear(6, 3),
    }
    return Net(windowed, **layers, places=parameter(2, 16, 16))


def by_picture(net, x):
    """Each picture convolved with weights of its own, in one call, as in CondConv."""
    weights = x.mean((2, 3)) @ net.experts
    return F.conv2d(x.reshape(1, -1, 8, 8), weights.reshape(-1, 3, 3, 3), groups=len(x)).reshape(len(x), 5, 6, 6).relu()


@pytest.mark.parametrize("batch", [2, 3, 4])
@pytest.mark.parametrize("composite", ["epsilon", "cp-lrp", "attnlrp"])
@pytest.mark.parametrize("make", [swin, lambda: Net(by_picture, experts=parameter(3, 135))])
def test_pictures_have_the_accounts_that_they_have_alone(make, composite, batch):
    net = seeded(make)
    together = relevance_of(net, X[:batch], composite)
    alone = [relevance_of(net, X[i : i + 1], composite) for i in range(batch)]
    assert_close(together.gap, torch.zeros(batch), rtol=0, atol=1e-9)
    for category in CATEGORIES:
        assert_close(together.kept[category], torch.cat([each.kept[category] for each in alone]), rtol=1e-6, atol=1e-9)


def test_a_layout_that_hides_the_pictures_shows_in_the_gap_and_not_in_the_sum():
    layer = seeded(lambda: nn.Linear(3, 3))
    gap = relevance_of(Net(lambda net, x: net.layer(x.flatten(2).permute(2, 0, 1)).relu().mean(0), layer=layer), X).gap
    assert gap.abs().min() > 1e-3
    assert_close(gap.sum(), 0.0, rtol=0, atol=1e-9)


def test_relevance_of_no_picture_is_left_out():
    account = Account(4, torch.device("cpu"))
    for shape in ((), (3,), (3, 5), (4, 0)):
        account.add("rest", torch.ones(shape))
        account.add_inner("rest", torch.ones(shape), torch.ones(shape))
    assert_close(account.sums["rest"], torch.zeros(4), rtol=0, atol=0)


def test_relevance_is_added_by_picture_or_by_windows_of_each():
    account, numbers = Account(2, torch.device("cpu")), torch.arange(12.0)
    account.add("rest", numbers.reshape(2, 6))
    account.add("rest", numbers.reshape(4, 3))
    assert account.sums["rest"].tolist() == [30.0, 102.0]
    image = numbers.reshape(2, 3, 2, 1)
    for layout in (image, image.contiguous(memory_format=torch.channels_last)):
        account.add_inner("biases", layout, layout)
        account.add_inner("biases", layout, layout, -1)
        account.add_inner("tokens", layout, layout)
    assert account.sums["biases"].tolist() == [0.0, 0.0]
    assert account.sums["tokens"].tolist() == [110.0, 902.0]


def test_a_constant_is_unchanged_and_counts_what_it_gave():
    account, value = Account(2, torch.device("cpu")), torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    found = constant(account, "tokens", value)
    assert torch.equal(found, value)
    torch.autograd.grad((found * torch.tensor([[1.0, 1.0], [2.0, 2.0]])).sum(), account.anchor)
    assert account.sums["tokens"].tolist() == [3.0, -2.0]
