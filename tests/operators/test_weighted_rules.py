"""Each rule of LRP against its formula, written out with every share of every output as one number."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import assert_close
from nets import seeded
from relevance import Net, mix, relevance_of
from torch import Tensor, nn

from xai_cli.operators.composites import COMPOSITES, PARAMETERS, Composite, Rule

LOW, HIGH = -2.5, 3.5
X = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LAYERS = {
    "linear": lambda: nn.Linear(6, 5),
    "without bias": lambda: nn.Linear(6, 5, bias=False),
    "grouped and strided": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
    "dilated": lambda: nn.Conv2d(4, 3, 2, dilation=2, padding="same"),
    "transposed": lambda: nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, groups=2),
}
RULES = [
    Rule("epsilon", (1e-6,)),
    Rule("epsilon", (0.25,)),
    Rule("lrp-0"),
    Rule("gamma", (0.25,)),
    Rule("gamma", (3.0,)),
    Rule("z-plus"),
    Rule("alpha-beta", (2.0, 1.0)),
    Rule("alpha-beta", (1.5, 0.5)),
    Rule("z-box"),
    Rule("w2"),
    Rule("flat"),
]
EVERYWHERE = [rule for rule in RULES if rule.name != "z-box"]


def told(rule: Rule) -> str:
    return f"{rule.name}{rule.parameters or ''}"


def everywhere(rule: Rule) -> Composite:
    return Composite(rule, rule)


def first_only(rule: Rule) -> Composite:
    return Composite(Rule("lrp-0"), Rule("lrp-0"), first=rule)


def matrix(layer: nn.Module, weight: Tensor) -> Tensor:
    """The layer without bias, with these weights, as a matrix `(outputs, inputs)`."""
    shape = (6,) if isinstance(layer, nn.Linear) else X.shape[1:]
    basis = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).reshape(-1, *shape)
    if isinstance(layer, nn.Linear):
        return F.linear(basis, weight).T
    if isinstance(layer, nn.ConvTranspose2d):
        return F.conv_transpose2d(basis, weight, None, layer.stride, layer.padding, 0, layer.groups).flatten(1).T
    return F.conv2d(basis, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups).flatten(1).T


def expected(rule: Rule, layer: nn.Module, x: Tensor) -> Tensor:
    """The relevance of `x` `(B, ...)` by the rule's formula; the outputs' is what they count in the score."""
    y, bias = layer(x).flatten(1), layer(torch.zeros_like(x))[0].flatten()
    weights = matrix(layer, layer.weight)
    z = x.flatten(1)[:, None] * weights
    positive, negative = (z.clamp(min=0), bias.clamp(min=0)), (z.clamp(max=0), bias.clamp(max=0))
    parts = {"epsilon": [(1.0, z, bias)], "lrp-0": [(1.0, z, bias)], "z-plus": [(1.0, *positive)]}
    match rule.name, rule.parameters:
        case "gamma", (gamma,):
            up = y > 0
            shares = z + gamma * torch.where(up[..., None], positive[0], negative[0])
            parts = [(1.0, shares, bias + gamma * torch.where(up, positive[1], negative[1]))]
        case "alpha-beta", (alpha, beta):
            parts = [(alpha, *positive), (-beta, *negative)]
        case "z-box", _:
            parts = [(1.0, z - LOW * weights.clamp(min=0) - HIGH * weights.clamp(max=0), 0 * bias)]
        case "w2", _:
            parts = [(1.0, weights.square().expand_as(z), 0 * bias)]
        case "flat", _:
            parts = [(1.0, matrix(layer, torch.ones_like(layer.weight)).expand_as(z), 0 * bias)]
        case name, _:
            parts = parts[name]
    eps = {"epsilon": rule.parameters, "lrp-0": (0.0,)}.get(rule.name, (1e-6,))[0]
    relevance = y * mix(y)
    total = torch.zeros_like(x.flatten(1))
    for factor, shares, constant in parts:
        sums = shares.sum(-1) + constant
        sums = sums + eps * sums.square().mean(1, keepdim=True).sqrt() * torch.where(sums < 0, -1.0, 1.0)
        total += factor * (shares * (relevance / sums)[..., None]).sum(1)
    return total.reshape(x.shape)


@pytest.mark.parametrize("rule", RULES, ids=told)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_rule_is_its_formula_at_the_pixels(kind, rule):
    layer = seeded(LAYERS[kind]).double()
    x = X if layer.weight.ndim == 4 else X[:, 0, 0]
    passed = relevance_of(layer, x, everywhere(rule), low=LOW, high=HIGH)
    assert_close(passed.relevance, expected(rule, layer, x), rtol=1e-9, atol=1e-9)
    assert_close(passed.gap, torch.zeros(3), rtol=0, atol=1e-9)


@pytest.mark.parametrize("rule", EVERYWHERE, ids=told)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_rule_is_its_formula_inside_a_net(kind, rule):
    layer = seeded(LAYERS[kind]).double()
    x = X if layer.weight.ndim == 4 else X[:, 0, 0]
    # Relevance goes through the hyperbolic tangent as it is.
    passed = relevance_of(Net(lambda net, x: net.layer(x.tanh()), layer=layer), x, everywhere(rule))
    assert_close(passed.relevance, expected(rule, layer, x.tanh()), rtol=1e-9, atol=1e-9)
    assert_close(passed.gap, torch.zeros(3), rtol=0, atol=1e-9)


@pytest.mark.parametrize("rule", [*EVERYWHERE, Rule("pass")], ids=told)
def test_the_account_closes_where_inputs_of_a_layer_are_zero(rule):
    net = seeded(lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)))
    passed = relevance_of(net, X, Composite(Rule("lrp-0"), Rule("lrp-0"), named={"2": rule}))
    assert_close(passed.gap, torch.zeros(3), rtol=0, atol=1e-9)


def positive_net() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Conv2d(4, 5, 3, padding=1), nn.ReLU()))


@pytest.mark.parametrize(
    ("rule", "same", "x", "tolerance"),
    [
        (Rule("gamma", (0.0,)), Rule("epsilon", (1e-6,)), X, 1e-12),
        (Rule("gamma", (1e6,)), Rule("z-plus"), X.abs(), 1e-4),
        (Rule("alpha-beta", (1.0, 0.0)), Rule("z-plus"), X, 1e-12),
        (Rule("lrp-0"), Rule("epsilon", (0.0,)), X, 0),
    ],
    ids=lambda each: each.name if isinstance(each, Rule) else "",
)
def test_rules_meet_at_their_limits(rule, same, x, tolerance):
    found, wanted = (relevance_of(positive_net(), x, everywhere(each)).relevance for each in (rule, same))
    assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def test_z_box_of_pixels_at_zero_is_lrp_0():
    net = seeded(lambda: nn.Conv2d(4, 5, 3, bias=False))
    found = relevance_of(net, X, first_only(Rule("z-box")), low=0.0, high=0.0).relevance
    # Between such bounds its sums have both signs, and are kept off zero as if they were positive.
    wanted = relevance_of(net, X, everywhere(Rule("lrp-0"))).relevance
    assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_w2_of_weights_of_one_size_is_flat():
    net = seeded(lambda: nn.Conv2d(4, 5, 3, stride=2, padding=1))
    with torch.no_grad():
        net.weight.copy_(net.weight.sign() * 0.3)
    found, wanted = (relevance_of(net, X, everywhere(Rule(name))).relevance for name in ("w2", "flat"))
    assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_flat_is_the_same_for_every_pixel_that_an_output_sees():
    net = Net(lambda net, x: net.layer(x)[:, 0, 1, 2], layer=seeded(lambda: nn.Conv2d(4, 5, 3, padding=1)))
    passed = relevance_of(net, X, everywhere(Rule("flat")))
    field = torch.zeros(6, 6, dtype=torch.float64)
    field[0:3, 1:4] = 1 / 36
    assert_close(passed.relevance, passed.score[:, None, None, None] * field.expand(3, 4, 6, 6), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("name", ["z-plus", "w2", "flat"])
def test_what_is_positive_stays_positive(name):
    assert relevance_of(positive_net(), X, everywhere(Rule(name))).relevance.min() >= 0


def test_pass_leaves_relevance_in_its_place():
    layer = seeded(lambda: nn.Conv2d(4, 4, 3, padding=1)).double()
    for net in (layer, Net(lambda net, x: net.layer(x.tanh()), layer=layer)):
        passed = relevance_of(net, X, everywhere(Rule("pass")))
        wanted = passed.output * mix(passed.output).reshape(passed.output.shape[1:])
        assert_close(passed.relevance, wanted, rtol=1e-12, atol=1e-12)


def test_pass_is_refused_where_places_differ():
    with pytest.raises(ValueError, match=r"shape of its input, found \(4, 6, 6\) to \(2, 4, 4\)"):
        relevance_of(seeded(lambda: nn.Conv2d(4, 2, 3)), X, everywhere(Rule("pass")))


def test_z_box_is_refused_behind_the_pixels():
    with pytest.raises(ValueError, match="z-box needs the bounds of pixels"):
        relevance_of(nn.Sequential(nn.ReLU(), nn.Conv2d(4, 2, 3)), X, everywhere(Rule("z-box")))


@pytest.mark.parametrize("name", COMPOSITES)
def test_shares_do_not_depend_on_the_size_of_numbers(name):
    net = seeded(lambda: nn.Sequential(nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)))
    found = relevance_of(net, X, name)
    with torch.no_grad():
        for each in net[0], net[3]:
            each.bias *= 1e-6
    small = relevance_of(net, 1e-6 * X, name, low=-3e-6, high=3e-6)
    assert_close(1e6 * small.relevance, found.relevance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bias", [0.0, 7.0, -7.0])
@pytest.mark.parametrize("rule", EVERYWHERE, ids=told)
def test_nothing_but_zeros_gives_finite_relevance(rule, bias):
    net = seeded(
        lambda: nn.Sequential(nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Conv2d(5, 5, 3), nn.Flatten(), nn.Linear(20, 3))
    )
    for layer in net[0], net[2], net[4]:
        nn.init.constant_(layer.bias, bias)
    for dtype in (torch.float32, torch.float64):
        passed = relevance_of(net, torch.zeros(3, 4, 6, 6, dtype=dtype), everywhere(rule))
        assert passed.relevance.isfinite().all()
        assert_close(passed.gap, torch.zeros(3), rtol=0, atol=1e-5 * float(passed.score.abs().max()))


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("name", COMPOSITES)
def test_single_precision_is_enough(name, positive):
    net = seeded(
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.Flatten(), nn.Linear(24, 3))
    )
    x = torch.cat([X[:, :, :3] * 0, X[:, :, 3:]], 2)  # where a picture is empty, layers have no negative shares
    if positive:
        x = x.abs()
        for parameter in net.parameters():
            parameter.data.abs_()
    exact, single = relevance_of(net, x, name), relevance_of(net, x.float(), name)
    assert_close(single.relevance, exact.relevance, rtol=0, atol=1e-4 * float(exact.relevance.abs().max()))
    assert_close(single.gap / single.score, torch.zeros(3), rtol=0, atol=1e-5)


def test_a_composites_epsilon_is_that_of_its_epsilon_rule():
    net = seeded(lambda: nn.Linear(6, 5))
    found = relevance_of(net, X, replace(COMPOSITES["epsilon"], epsilon=0.5)).relevance
    assert_close(found, relevance_of(net, X, everywhere(Rule("epsilon", (0.5,)))).relevance, rtol=0, atol=0)
    assert not torch.allclose(found, relevance_of(net, X, "epsilon").relevance)


@pytest.mark.parametrize("rule", EVERYWHERE, ids=told)
def test_a_picture_has_the_same_bytes_beside_pictures_of_other_signs(rule):
    net = seeded(lambda: nn.Conv2d(4, 5, 3, padding=1))
    batches = [torch.cat([X[:1].abs(), rest]) for rest in (X[1:].abs(), X[1:])]
    alike, mixed = (relevance_of(net, batch, everywhere(rule)).relevance[0] for batch in batches)
    assert torch.equal(alike, mixed)


def test_every_rule_is_tested():
    assert {rule.name for rule in RULES} | {"pass"} == PARAMETERS.keys()
