from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the usual name
from captum.attr import GuidedBackprop as CaptumGuidedBackprop
from helpers import assert_close
from nets import classifier_of, conv_net, linear_net, random_input, seeded
from torch import nn

from xai_cli import attribute
from xai_cli.methods.guided_backprop import GuidedBackprop
from xai_cli.methods.saliency import Saliency
from xai_cli.targets import Target

TARGETS = [Target(1), Target(2)]


class Rectified(nn.Module):
    """Two hidden layers, with one rectifier for both."""

    def __init__(self, rectify):
        super().__init__()
        self.layers = seeded(lambda: nn.ModuleList([nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 3)]))
        self.rectify = rectify

    def forward(self, x):
        for layer in self.layers[:2]:
            x = self.rectify(layer(x))
        return self.layers[2](x.mean((2, 3)))


def test_equals_captum_where_captum_sees_every_relu():
    net, inputs = conv_net().double(), random_input()
    ours = attribute(classifier_of(net), inputs, GuidedBackprop(), TARGETS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = CaptumGuidedBackprop(net).attribute(inputs.requires_grad_(), target=torch.tensor([1, 2]))
    assert_close(ours.relevance, theirs.abs().amax(dim=1), rtol=1e-5, atol=0)
    assert ours.rule == "relu"


@pytest.mark.parametrize(
    "rectify",
    [nn.ReLU(), nn.ReLU(inplace=True), lambda x: x.relu_(), lambda x: torch.clamp(x, min=0), lambda x: x.clamp_(0)],
    ids=["module", "in place", "relu_", "clamp", "clamp_"],
)
def test_does_not_see_how_relu_is_written(rectify):
    maps = [
        attribute(classifier_of(Rectified(each)), random_input(), GuidedBackprop(), TARGETS).relevance
        for each in (rectify, F.relu)
    ]
    assert_close(maps[0], maps[1], rtol=1e-6, atol=0)
    plain = attribute(classifier_of(Rectified(rectify)), random_input(), Saliency(), TARGETS).relevance
    assert not torch.allclose(maps[0], plain.float())


def test_is_the_gradient_where_signals_and_gradients_are_positive():
    net = Rectified(F.relu)
    for parameter in net.parameters():
        parameter.data.abs_()
    inputs = random_input().abs()
    guided, plain = (
        attribute(classifier_of(net), inputs, method, TARGETS) for method in (GuidedBackprop(), Saliency())
    )
    assert_close(guided.relevance, plain.relevance, rtol=1e-6, atol=0)


def test_of_one_layer_with_gelu_is_known():
    net = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.GELU(), nn.Linear(5, 3))).double()
    inputs = random_input(1)
    attribution = attribute(classifier_of(net), inputs, GuidedBackprop(), [Target(2)])
    z = net[1](inputs.flatten(1))[0]
    slope = (1 + torch.erf(z / math.sqrt(2))) / 2 + z * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    gradient = (net[3].weight[2].clamp(min=0) * slope.clamp(min=0)) @ net[1].weight
    assert_close(attribution.relevance[0], gradient.reshape(3, 8, 8).abs().amax(dim=0), rtol=1e-6, atol=0)
    assert attribution.rule == "generalised gate of gelu"


def test_refuses_a_net_without_rectifier_or_says_what_its_map_is():
    classifier, inputs = classifier_of(linear_net()), random_input()
    sentence = "the model has no rectifier, so guided-backprop would .*, or go on with --allow-plain-gradient$"
    with pytest.raises(ValueError, match=sentence):
        attribute(classifier, inputs, GuidedBackprop(), TARGETS)
    ours = attribute(classifier, inputs, GuidedBackprop(allow_plain_gradient=True), TARGETS)
    plain = attribute(classifier, inputs, Saliency(), TARGETS).relevance
    assert_close(ours.relevance, plain, rtol=1e-6, atol=0)
    assert ours.rule == "plain gradient"
    assert ours.notes == ("the model has no rectifier, so this is the plain gradient, as saliency shows it",)
