from __future__ import annotations

import warnings

import pytest
import torch
from captum.attr import Deconvolution
from helpers import assert_close
from nets import classifier_of, conv_net, linear_net, random_input, seeded
from torch import nn

from xai_cli import attribute
from xai_cli.methods.deconvnet import Deconvnet
from xai_cli.methods.saliency import Saliency
from xai_cli.targets import Target

TARGETS = [Target(1), Target(2)]


def test_equals_captum_through_relu_and_max_pooling():
    net, inputs = conv_net().double(), random_input()
    ours = attribute(classifier_of(net), inputs, Deconvnet(), TARGETS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = Deconvolution(net).attribute(inputs.requires_grad_(), target=torch.tensor([1, 2]))
    assert_close(ours.relevance, theirs.abs().amax(dim=1), rtol=1e-5, atol=0)
    assert (ours.rule, ours.notes) == ("relu", ())


def test_is_the_gradient_where_signals_and_gradients_are_positive():
    net = conv_net()
    for parameter in net.parameters():
        parameter.data.abs_()
    ours, plain = (
        attribute(classifier_of(net), random_input().abs(), method, TARGETS) for method in (Deconvnet(), Saliency())
    )
    assert_close(ours.relevance, plain.relevance, rtol=1e-6, atol=0)


def test_of_one_layer_with_silu_does_not_look_at_the_signal():
    net = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.SiLU(), nn.Linear(5, 3))).double()
    attribution = attribute(classifier_of(net), random_input(1), Deconvnet(), [Target(2)])
    gradient = net[3].weight[2].clamp(min=0) @ net[1].weight
    assert_close(attribution.relevance[0], gradient.reshape(3, 8, 8).abs().amax(dim=0), rtol=1e-6, atol=0)
    assert attribution.rule == "generalised gate of silu"


def test_says_that_a_net_without_switches_gives_all_pictures_one_map():
    net = conv_net()
    net[2] = nn.AvgPool2d(2)
    attribution = attribute(classifier_of(net), random_input(), Deconvnet(), [Target(1)] * 2)
    assert_close(attribution.relevance[0], attribution.relevance[1], rtol=1e-6, atol=0)
    assert "nothing in this model shows the picture to deconvnet" in attribution.notes[0]


def test_refuses_a_net_without_rectifier_or_gives_its_gradient():
    classifier, inputs = classifier_of(linear_net()), random_input()
    with pytest.raises(ValueError, match="no rectifier, so deconvnet would show the plain gradient"):
        attribute(classifier, inputs, Deconvnet(), TARGETS)
    ours = attribute(classifier, inputs, Deconvnet(allow_plain_gradient=True), TARGETS)
    assert_close(ours.relevance, attribute(classifier, inputs, Saliency(), TARGETS).relevance, rtol=1e-6, atol=0)
    assert ours.rule == "plain gradient"
