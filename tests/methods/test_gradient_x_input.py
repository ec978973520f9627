from __future__ import annotations

import pytest
import torch
from captum.attr import InputXGradient
from helpers import assert_close
from nets import classifier_of, conv_net, linear_net, random_input, seeded
from torch import nn

from xai_cli import attribute
from xai_cli.methods.deeplift import DeepLift
from xai_cli.methods.gradient_x_input import GradientXInput
from xai_cli.methods.ig import IntegratedGradients
from xai_cli.methods.lrp import Lrp
from xai_cli.targets import Target

TARGETS = [Target(1), Target(2)]


def without_biases() -> nn.Module:
    """Rectifiers and max pooling, no biases: twice the picture gives twice the scores."""
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3, bias=False),
            nn.ReLU(), nn.Flatten(), nn.Linear(24, 3, bias=False),
        )
    )  # fmt: skip


def test_adds_up_to_the_score_of_a_rectifier_net_without_biases():
    net, inputs = without_biases(), random_input()
    attribution = attribute(classifier_of(net), inputs, GradientXInput(), TARGETS)
    assert_close(attribution.relevance.sum(dim=(1, 2)), net(inputs)[[0, 1], [1, 2]], rtol=1e-9, atol=0)
    assert attribution.signed


@pytest.mark.parametrize(
    "method",
    [
        IntegratedGradients(),
        DeepLift(baseline="zero"),
        Lrp(composite="epsilon", rules=["convolution=lrp-0", "linear=lrp-0"]),
    ],
    ids=lambda method: method.name,
)
def test_equals_methods_that_start_from_the_mean_colour_on_a_rectifier_net_without_biases(method):
    classifier, inputs = classifier_of(without_biases()), random_input()
    ours = attribute(classifier, inputs, GradientXInput(), TARGETS).relevance
    assert_close(attribute(classifier, inputs, method, TARGETS).relevance, ours, rtol=1e-5, atol=1e-7)


def test_of_a_linear_model_is_each_pixels_part_of_the_score_but_for_the_bias():
    net, inputs = linear_net(), random_input()
    relevance = attribute(classifier_of(net), inputs, GradientXInput(), TARGETS).relevance
    assert_close(relevance, (net[1].weight[[1, 2]].reshape(2, 3, 8, 8) * inputs).sum(dim=1), rtol=1e-9, atol=1e-12)
    scores = net(inputs)[[0, 1], [1, 2]]
    assert_close(relevance.sum(dim=(1, 2)) + net[1].bias[[1, 2]], scores, rtol=1e-9, atol=1e-12)


def test_of_the_mean_colour_is_nothing_though_the_score_is_not():
    classifier = classifier_of(conv_net())
    inputs = classifier.colour("mean").double()
    assert classifier.logits(inputs)[0, 1].abs() > 0.01
    assert attribute(classifier, inputs, GradientXInput(), TARGETS[:1]).relevance.abs().max() == 0


def test_equals_captum():
    net, inputs = conv_net().double(), random_input()
    ours = attribute(classifier_of(net), inputs, GradientXInput(), TARGETS).relevance
    theirs = InputXGradient(net).attribute(inputs.requires_grad_(), torch.tensor([1, 2])).sum(dim=1)
    assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
