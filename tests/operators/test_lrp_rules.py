"""How relevance passes what is no layer with weights: functions, gates, products, softmax, norms."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import assert_close
from nets import random_input, seeded
from relevance import Net, mix, relevance_of
from torch import Tensor, nn

from xai_cli.operators.composites import COMPOSITES, Composite, Rule

X = random_input(batch=3)
GATE, HALF = COMPOSITES["epsilon"], COMPOSITES["attnlrp"]
LRP_0 = Composite(Rule("lrp-0"), Rule("lrp-0"))


def started(output: Tensor) -> Tensor:
    """The relevance that each number of an output starts with."""
    return output * mix(output).reshape(output.shape[1:])


@pytest.mark.parametrize(
    "function",
    [
        *(F.relu, F.leaky_relu, F.gelu, F.silu, F.mish, F.elu, F.selu, F.hardswish, F.relu6, F.softsign, F.tanhshrink),
        *(torch.tanh, torch.sin, torch.abs, torch.square, torch.expm1, torch.erf, lambda x: x**3),
        lambda x: x.relu().sqrt(),
        *(torch.exp, torch.cos, torch.sigmoid, F.softplus, lambda x: x.clamp(0.2, 1), lambda x: 2**x, F.hardsigmoid),
    ],
)
def test_a_function_of_one_number_hands_on_what_it_adds_to_its_value_at_zero(function):
    passed = relevance_of(Net(function), X)
    offset = started(function(torch.zeros_like(X)))
    assert_close(passed.relevance, started(function(X)) - offset, rtol=1e-9, atol=1e-9)
    assert_close(passed.kept["rest"], offset.flatten(1).sum(1), rtol=1e-9, atol=1e-9)


GATES = {
    "sigmoid": lambda x: x * x.sigmoid(),
    "sigmoid on the left": lambda x: x.sigmoid() * x,
    "hard sigmoid": lambda x: x * F.hardsigmoid(x),
    "squeeze and excite": lambda x: x * x.mean((2, 3), keepdim=True).relu(),
    "gate that was moved": lambda x: x * x.sigmoid().flatten(2).unsqueeze(1).reshape(x.shape),
    "gate among two": lambda x: x * x.sigmoid().mean((2, 3), keepdim=True).sigmoid(),
    "deviation": lambda x: x / (x.std((2, 3), keepdim=True) + 1),
    "inverse deviation": lambda x: x * (x.var((2, 3), keepdim=True) + 1).rsqrt(),
    "power of the variance": lambda x: x * (x.var((2, 3), keepdim=True) + 1) ** -0.5,
    "logarithm": lambda x: x * (x.square() + 2).log(),
    "length": F.normalize,
    "sign": lambda x: x.sign() * x,
    "mask": lambda x: x * (x > 0),
    "batch norm": lambda x: F.batch_norm(x, torch.zeros(3).double(), torch.ones(3).double() * 2),
    "root mean square": lambda x: F.rms_norm(x, (8,)),
    "GLU": lambda x: F.glu(torch.cat([x, x], 1), 1),
}


@pytest.mark.parametrize("forward", GATES.values(), ids=GATES)
def test_a_gate_keeps_no_relevance_from_its_signal(forward):
    passed = relevance_of(Net(forward), X, GATE)
    assert_close(passed.relevance, started(forward(X)), rtol=1e-9, atol=1e-9)


def test_factors_of_one_rank_get_half_each_and_by_attnlrp_gates_do_so_too():
    both = Net(lambda x: x[:, 0] * x[:, 1])
    for composite in (GATE, HALF):
        passed = relevance_of(both, X, composite)
        half = started(passed.output) / 2
        assert_close(passed.relevance, torch.stack([half, half, 0 * half], 1), rtol=1e-12, atol=1e-12)
    # The sigmoid keeps its value at zero, and hands on the rest of its half.
    passed = relevance_of(Net(lambda x: x * x.sigmoid()), X, HALF)
    wanted = started(X) * (X.sigmoid() - 0.25)
    assert_close(passed.relevance, wanted, rtol=1e-9, atol=1e-9)


def pieces(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x[:, 0], x[:, 1], x[:, 2]


def test_attention_by_attnlrp_and_cp_lrp_is_the_published_one():
    net = Net(lambda x: F.scaled_dot_product_attention(*pieces(x)))
    q, k, v = pieces(X)
    scores = q @ k.mT / 8**0.5
    weights = scores.softmax(-1)
    out = weights @ v
    ratio = started(out) / out
    # CP-LRP: all of it goes through the values.
    to_v = v * (weights.mT @ ratio)
    assert_close(relevance_of(net, X, GATE).relevance[:, 2], to_v, rtol=1e-9, atol=1e-9)
    assert relevance_of(net, X, GATE).relevance[:, :2].abs().max() == 0
    # AttnLRP: half to the weights, of which softmax passes on its Taylor expansion, and half of that to each factor.
    passed = relevance_of(net, X, HALF)
    to_weights = weights * (ratio @ v.mT) / 2
    to_scores = scores * (to_weights - weights * to_weights.sum(-1, keepdim=True))
    per_score = to_scores / scores / 2 / 8**0.5
    wanted = torch.stack([q * (per_score @ k), k * (per_score.mT @ q), to_v / 2], 1)
    assert_close(passed.relevance, wanted, rtol=1e-6, atol=1e-9)
    assert_close(passed.kept["softmax"], (to_weights - to_scores).sum((1, 2)), rtol=1e-9, atol=1e-9)


def test_multi_head_attention_is_its_parts_said_one_by_one():
    mixed = seeded(lambda: nn.MultiheadAttention(8, 2, batch_first=True)).double().requires_grad_(False)

    def spelled(x):
        parts = (x @ weight.T + bias for weight, bias in zip(weights, biases, strict=True))
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in parts)
        heads = torch.softmax(q @ k.mT / 2, -1) @ v
        return mixed.out_proj(heads.transpose(1, 2).flatten(2))

    weights, biases = mixed.in_proj_weight.chunk(3), mixed.in_proj_bias.chunk(3)
    for composite in (GATE, HALF):
        whole = relevance_of(Net(lambda net, x: net.mixed(*[x[:, 0]] * 3)[0], mixed=mixed), X, composite)
        parts = relevance_of(Net(lambda x: spelled(x[:, 0])), X, composite)
        assert_close(whole.output, parts.output, rtol=1e-9, atol=1e-9)
        assert_close(whole.relevance, parts.relevance, rtol=1e-5, atol=1e-7)


def test_a_norm_shares_like_the_linear_layer_that_it_is_at_this_picture():
    scale, shift = torch.linspace(0.5, 2, 8).double(), torch.linspace(-1, 1, 8).double()
    passed = relevance_of(Net(lambda x: F.layer_norm(x, (8,), scale, shift)), X)
    deviation = (X.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    per_number = mix(X).reshape(3, 8, 8) * scale / deviation
    assert_close(passed.relevance, X * (per_number - per_number.mean(-1, keepdim=True)), rtol=1e-9, atol=1e-9)
    assert_close(passed.kept["biases"], (mix(X).reshape(3, 8, 8) * shift).sum().expand(3), rtol=1e-9, atol=1e-9)


def test_a_sum_shares_by_its_parts_and_a_selection_gives_all_to_the_largest():
    passed = relevance_of(Net(lambda x: x[:, 0] + x[:, 1] * 3 - x[:, 2]), X)
    wanted = X * torch.tensor([1.0, 3, -1])[:, None, None] * mix(X[:, 0]).reshape(8, 8)
    assert_close(passed.relevance, wanted, rtol=1e-12, atol=1e-12)
    largest = relevance_of(Net(lambda x: x.amax(1)), X).relevance
    assert_close(largest, (X.amax(1, keepdim=True) == X) * X * mix(X[:, 0]).reshape(8, 8), rtol=1e-12, atol=0)


def padded(net, x):
    return net.layer(F.pad(x, (1, 1, 1, 1)))


def patched(net, x):
    return net.layer(x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3).contiguous())


def normalised(net, x):
    return net.layer((1 - (x - 0.3) / torch.tensor([[[0.5]], [[2.0]], [[1.0]]])) * 2)


def behind(net, x):
    return net.layer(x.tanh())


@pytest.mark.parametrize(
    ("function", "layer", "first"),
    [
        (padded, nn.Conv2d(3, 4, 3), True),
        (patched, nn.Linear(48, 4), True),
        (lambda net, x: net.layer(x[:, [2, 1, 0]].to(torch.float64).contiguous()), nn.Conv2d(3, 4, 3), True),
        (lambda net, x: torch.cat([net.layer(x), net.layer(F.avg_pool2d(x, 2)).repeat(1, 1, 3, 3)], 1),
         nn.Conv2d(3, 4, 3), True),
        (normalised, nn.Conv2d(3, 4, 3), True),
        (lambda net, x: net.layer(F.batch_norm(x, *torch.ones(2, 3).double())), nn.Conv2d(3, 4, 3), True),
        (behind, nn.Conv2d(3, 4, 3), False),
    ],
)  # fmt: skip
def test_the_first_layer_is_every_layer_that_sees_nothing_but_pixels(function, layer, first):
    net = Net(function, layer=layer)
    flat = relevance_of(net, X, replace(LRP_0, first=Rule("flat"))).relevance
    everywhere = relevance_of(net, X, Composite(Rule("flat"), Rule("flat"))).relevance
    assert torch.equal(flat, everywhere) == first
    assert torch.equal(flat, relevance_of(net, X, LRP_0).relevance) != first


def test_flat_at_the_pixels_is_the_same_however_the_picture_is_cut_into_patches():
    layer = seeded(lambda: nn.Linear(48, 4)).double()
    strided = nn.Conv2d(3, 4, 4, stride=4).double()
    strided.weight.data, strided.bias.data = layer.weight.data.reshape(4, 3, 4, 4), layer.bias.data
    composite = replace(LRP_0, first=Rule("flat"))
    cut = relevance_of(Net(lambda net, x: patched(net, x).permute(0, 3, 1, 2), layer=layer), X, composite)
    assert_close(cut.relevance, relevance_of(strided, X, composite).relevance, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("factor", [2.0, -2.0])
def test_the_bounds_of_pixels_follow_a_net_that_normalises_them_itself(factor):
    layer, composite = seeded(lambda: nn.Conv2d(3, 4, 3)), replace(LRP_0, first=Rule("z-box"))
    inside = relevance_of(Net(lambda net, x: net.layer(x * factor + 1), layer=layer), X, composite, low=-4, high=5)
    low, high = sorted((-4 * factor + 1, 5 * factor + 1))
    outside = relevance_of(layer, X * factor + 1, composite, low=low, high=high)
    assert_close(inside.relevance, outside.relevance, rtol=1e-9, atol=1e-12)
    turned = relevance_of(Net(lambda net, x: net.layer(-x), layer=layer), X, composite, low=-4, high=5)
    outside = relevance_of(layer, -X, composite, low=-5, high=4)
    assert_close(turned.relevance, outside.relevance, rtol=1e-9, atol=1e-12)


def test_a_gate_that_was_taken_apart_is_still_a_gate():
    whole = relevance_of(Net(lambda x: x[:, 0] * x[:, 1].sigmoid()), X).relevance
    for taken in (lambda gate: gate.unbind(1)[1], lambda gate: gate.chunk(3, 1)[1][:, 0]):
        apart = relevance_of(Net(lambda x, taken=taken: x[:, 0] * taken(x.sigmoid())), X).relevance
        assert_close(apart, whole, rtol=1e-12, atol=0)
    assert_close(whole[:, 1:], torch.zeros(3, 2, 8, 8), rtol=0, atol=0)


def test_pixels_that_were_taken_apart_are_still_pixels():
    layer, composite = seeded(lambda: nn.Conv2d(1, 4, 3)), replace(LRP_0, first=Rule("flat"))
    apart = relevance_of(Net(lambda net, x: net.layer(x.chunk(3, 1)[2]), layer=layer), X, composite).relevance
    whole = relevance_of(Net(lambda net, x: net.layer(x[:, 2:]), layer=layer), X, composite).relevance
    assert_close(apart, whole, rtol=1e-12, atol=0)


def test_of_a_log_softmax_its_scores_are_explained():
    net = Net(lambda net, x: net.head(x.flatten(1)), head=seeded(lambda: nn.Linear(192, 3)))
    scores = relevance_of(net, X).relevance
    assert_close(relevance_of(nn.Sequential(net, nn.LogSoftmax(1)), X).relevance, scores, rtol=1e-9, atol=1e-12)


def test_pixels_that_were_put_together_again_are_still_pixels():
    layer, composite = seeded(lambda: nn.Conv2d(3, 4, 3)), replace(LRP_0, first=Rule("z-box"))
    factors = [0.5, -2.0, 1.0]
    apart = [lambda x: torch.cat([x[:, i : i + 1] * factor for i, factor in enumerate(factors)], 1),
             lambda x: torch.stack([each * factor for each, factor in zip(x.unbind(1), factors, strict=True)], 1),
             lambda x: x.clamp(-9, 9) * torch.tensor(factors)[:, None, None]]  # fmt: skip
    whole = relevance_of(
        Net(lambda net, x: net.layer(x * torch.tensor(factors)[:, None, None]), layer=layer), X, composite
    )
    for taken in apart:
        found = relevance_of(Net(lambda net, x, taken=taken: net.layer(taken(x)), layer=layer), X, composite)
        assert_close(found.relevance, whole.relevance, rtol=1e-9, atol=1e-12)


def test_places_beside_the_pixels_take_no_share():
    def with_places(net, x):
        return net.layer(torch.cat([x, torch.ones(3, 1, 8, 8).to(x)], 1))

    layer, composite = seeded(lambda: nn.Conv2d(4, 2, 3, bias=False)), replace(LRP_0, first=Rule("flat"))
    passed = relevance_of(Net(with_places, layer=layer), X, composite)
    assert_close(passed.relevance.flatten(1).sum(1), passed.score, rtol=1e-4, atol=1e-9)
