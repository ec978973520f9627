from __future__ import annotations

import pytest
import torch
from helpers import assert_close
from nets import classifier_of, conv_net, linear_net, random_input, seeded
from torch import nn

from xai_cli import attribute
from xai_cli.methods.deep_taylor import DeepTaylor
from xai_cli.methods.lrp import Lrp
from xai_cli.targets import Target


def pictures(batch=2):
    """Inputs between black and white, -2 and 2 for the nets of these tests."""
    return random_input(batch).clamp(-2, 2)


def positive_net():
    """A net of ReLU without biases, whose first score is positive for every picture."""
    net = conv_net()
    for layer in (net[0], net[3], net[7]):
        layer.bias.data.zero_()
    net[7].weight.data[0].abs_()
    return net


def shares(x, weight):
    """z-plus of a linear layer `(J, I)`: the share of input i in output j."""
    parts = (x * weight).clamp(min=0)
    return parts / parts.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("bounds", ["box", "unbounded"])
def test_conserves_a_positive_score_without_negative_relevance(bounds):
    attribution = attribute(classifier_of(positive_net()), pictures(), DeepTaylor(bounds), [Target(0)] * 2)
    assert (attribution.relevance >= 0).all()
    assert_close(attribution.checks["conservation"], torch.ones(2), rtol=0, atol=1e-5)
    assert_close(attribution.checks["account_gap"], torch.zeros(2), rtol=0, atol=1e-12)


def test_is_lrp_with_z_plus_everywhere_and_z_box_at_the_pixels():
    classifier, targets = classifier_of(conv_net()), [Target(1), Target(2)]
    ours = attribute(classifier, pictures(), DeepTaylor(), targets)
    lrp = attribute(classifier, pictures(), Lrp("excitation-backprop", rules=["first=z-box"]), targets)
    assert torch.equal(ours.relevance, lrp.relevance)
    assert ours.rule == "z-plus, first=z-box"


@pytest.mark.parametrize("bounds", ["box", "unbounded"])
def test_of_one_layer_is_the_rule_of_the_pixels(bounds):
    net, inputs = linear_net(), pictures(1)
    relevance = attribute(classifier_of(net), inputs, DeepTaylor(bounds), [Target(2)]).relevance
    weight = net[1].weight[2].reshape(3, 8, 8)
    boxed = inputs[0] * weight + 2 * weight.clamp(min=0) - 2 * weight.clamp(max=0)
    parts = boxed if bounds == "box" else weight.square()
    score = net(inputs)[0, 2]
    assert_close(relevance[0], (score * parts / parts.sum()).sum(dim=0), rtol=1e-5, atol=0)


def test_of_two_layers_is_known():
    net = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.ReLU(), nn.Linear(5, 3))).double()
    net[3].bias.data.zero_()
    inputs = pictures(1)
    relevance = attribute(classifier_of(net), inputs, DeepTaylor("unbounded"), [Target(0)]).relevance
    hidden = net[2](net[1](inputs.flatten(1)))[0]
    squares = net[1].weight.square()
    expected = net(inputs)[0, 0] * shares(hidden, net[3].weight[:1])[0] @ (squares / squares.sum(dim=1, keepdim=True))
    assert_close(relevance[0], expected.reshape(3, 8, 8).sum(dim=0), rtol=1e-5, atol=0)


def test_a_score_that_nothing_speaks_for_is_kept_by_the_rest():
    net = positive_net()
    net[7].weight.data[1] = -net[7].weight.data[0]
    attribution = attribute(classifier_of(net), pictures(), DeepTaylor(), [Target(1)] * 2)
    assert attribution.relevance.abs().max() < 1e-9
    assert_close(attribution.checks["kept_by_rest"], torch.ones(2), rtol=0, atol=1e-6)
