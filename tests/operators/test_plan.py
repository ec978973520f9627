"""The plan says of every operator in which layer it is called, how often, and what becomes of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from nets import classifier_of, conv_net, random_input, seeded
from relevance import Net
from torch import nn

from xai_cli.operators.composites import default_composite
from xai_cli.operators.mode import unruled
from xai_cli.operators.plan import PLAIN, REFUSED, STEP, Step, plan_of

X = random_input(batch=1, dtype=torch.float32)


def planned(function, **layers):
    net = Net(function, **layers).eval().requires_grad_(False)
    return plan_of(net, X)


def test_the_plan_of_a_net_is_its_calls_in_order():
    assert plan_of(conv_net().requires_grad_(False), X).steps == (
        Step("0", "conv2d", "convolution", 1),
        Step("1", "relu", "pointwise", 1),
        Step("2", "max_pool2d", "selection", 1),
        Step("3", "conv2d", "convolution", 1),
        Step("4", "relu", "pointwise", 1),
        Step("5", "adaptive_avg_pool2d", PLAIN, 1),
        Step("6", "flatten", PLAIN, 1),
        Step("7", "linear", "linear", 1),
    )


def test_composite_functions_are_planned_in_the_kinds_they_are_said_in():
    def forward(net, x):
        x = net.norm(x.flatten(2).mT)
        x, _ = net.mix(x, x, x, need_weights=False)
        return F.normalize(x.mean(1) * x.amax(1).sigmoid() + net.token)

    layers = {"norm": nn.LayerNorm(3), "mix": nn.MultiheadAttention(3, 1, batch_first=True)}
    plan = planned(forward, **layers, token=nn.Parameter(torch.ones(3)))
    treatments = {(step.layer, step.operator): step.treatment for step in plan.steps}
    assert treatments["norm", "layer_norm"] == "normalise, affine"
    mixed = treatments["mix", "multi_head_attention_forward"]
    assert mixed == "linear, linear, linear, product, softmax, product, linear"
    assert treatments["", "add"] == "constant"
    assert treatments["", "mul"] == "product"
    assert treatments["", "normalize"] == "pointwise, pointwise, pointwise, quotient"
    assert plan.calls("linear") == 4
    assert plan.attends


def test_calls_of_one_layer_are_counted_and_reading_facts_is_not_a_call():
    plan = planned(lambda net, x: net.act(net.act(x) * x.shape[-1] * (x > 0)), act=nn.ReLU())
    assert plan.steps == (Step("act", "relu", "pointwise", 2), Step("", "mul", PLAIN, 2), Step("", "gt", STEP, 1))


def test_everything_without_rule_is_refused_and_what_follows_is_planned_all_the_same():
    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 2

    plan = planned(lambda x: Hidden.apply(Hidden.apply(F.normalize(x, p=1.0)).relu().cumprod(1)))
    assert [(step.operator, step.treatment) for step in plan.steps] == [
        ("norm of order 1.0", REFUSED),
        ("Hidden", REFUSED),
        ("relu", "pointwise"),
        ("cumprod", REFUSED),
    ]
    assert plan.refused == tuple(unruled(name, "") for name in ("norm of order 1.0", "Hidden", "cumprod"))
    assert [step.calls for step in plan.steps] == [1, 2, 1, 1]


def gated(net, x):
    x = net.conv(x)
    return (x * x.mean((2, 3), keepdim=True).sigmoid()).mean((2, 3))


def attended(net, x):
    x = net.conv(x).flatten(2)
    return (torch.softmax(x.mT @ x, -1) @ x.mT).mean(1)


@pytest.mark.parametrize(
    ("function", "attends", "composite"),
    [
        (gated, False, "epsilon-plus-flat"),
        (lambda net, x: gated(net, x).softmax(-1), False, "epsilon-plus-flat"),
        (attended, True, "cp-lrp"),
        (lambda net, x: net.conv(x).amax((2, 3)).softmax(-1), False, "epsilon-plus-flat"),
        (lambda net, x: net.head(net.mix(net.mix(net.conv(x).mean((2, 3))))), False, "cp-lrp"),
        (lambda net, x: net.mix(net.mix(net.conv(x).mean((2, 3)))), False, "epsilon-plus-flat"),
    ],
)
def test_the_composite_of_a_net_follows_from_its_plan(function, attends, composite):
    plan = planned(function, conv=nn.Conv2d(3, 4, 1), mix=nn.Linear(4, 4), head=nn.Linear(4, 3))
    assert plan.attends == attends
    assert default_composite(plan) == composite


def test_planning_leaves_no_trace():
    net = seeded(conv_net)
    classifier = classifier_of(net, dtype=torch.float32)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert classifier.plan is classifier.plan
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in net.parameters())


def second(net, x):
    """A net that keeps its pictures on the second axis; as many tokens as pictures would not be told apart by shape."""
    x = net.conv(x).flatten(2).permute(2, 0, 1)
    return net.head(x.relu()).mean(0)


def windows(net, x, pictures_first):
    x = net.conv(x).unflatten(2, (3, -1)).movedim(2, 1 if pictures_first else 0).flatten(0, 1).flatten(2).mT
    x = net.head(x.relu()).mean(1)
    return x.unflatten(0, (-1, 3)).mean(1) if pictures_first else x.unflatten(0, (3, -1)).mean(0)


@pytest.mark.parametrize(
    ("function", "batch_first"),
    [
        (second, False),
        (lambda net, x: windows(net, x, True), True),
        (lambda net, x: windows(net, x, False), False),
        (lambda net, x: net.head(torch.stack([x, x]).mean((0, 3, 4)) @ torch.ones(3, 4)), True),
        (lambda net, x: net.head(torch.stack([x, x]).relu().mean((0, 3, 4)) @ torch.ones(3, 4)), False),
    ],
)
def test_whether_pictures_stay_first_is_seen_from_values_not_from_shapes(function, batch_first):
    net = Net(function, conv=seeded(lambda: nn.Conv2d(3, 4, 1)), head=seeded(lambda: nn.Linear(4, 3)))
    x = random_input(batch=1, size=9, dtype=torch.float32)
    assert plan_of(net.requires_grad_(False), x).batch_first == batch_first


def test_a_model_that_takes_no_three_pictures_is_planned_with_one():
    def one_or_two(net, x):
        assert len(x) < 3
        return net.head(x.flatten(1))

    plan = planned(one_or_two, head=nn.Linear(192, 3))
    assert [step.operator for step in plan.steps] == ["flatten", "linear"]
    assert not plan.batch_first


def test_a_model_that_fails_where_it_is_watched_says_so():
    def failing(net, x):
        if x.requires_grad:
            raise KeyError("scale")
        return net.head(x.flatten(1))

    classifier = classifier_of(Net(failing, head=nn.Linear(192, 3)))
    with pytest.raises(ValueError, match=r"the operators of test cannot be watched \(.*scale.*\); take a method"):
        _ = classifier.plan


class DoubledInPlace(torch.autograd.Function):
    """What no function mode sees, and what gives back the tensor that it took."""

    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def test_what_is_hidden_and_in_place_is_refused():
    refused = planned(lambda x: DoubledInPlace.apply(x + 0).relu()).refused
    assert refused[0].startswith("operator 'DoubledInPlace' in the model itself has no rule")
