from __future__ import annotations

import pytest
import torch
from captum.attr import Saliency as CaptumSaliency
from helpers import assert_close
from nets import classifier_of, conv_net, linear_net, random_input

from xai_cli import attribute
from xai_cli.methods.saliency import Saliency
from xai_cli.targets import Target


def test_of_a_linear_model_is_the_largest_weight_of_each_pixel():
    net = linear_net()
    relevance = attribute(classifier_of(net), random_input(), Saliency(), [Target(2)] * 2).relevance
    expected = net[1].weight[2].reshape(3, 8, 8).abs().amax(dim=0)
    assert_close(relevance, expected.expand(2, 8, 8), rtol=1e-12, atol=0)


def test_equals_finite_differences():
    classifier, inputs = classifier_of(conv_net()), random_input(1)
    relevance = attribute(classifier, inputs, Saliency(), [Target(1)]).relevance
    step = 1e-6
    for y, x in ((0, 0), (3, 5), (7, 7)):
        slopes = []
        for channel in range(3):
            moved = inputs.clone()
            moved[0, channel, y, x] += step
            slopes.append((classifier.logits(moved)[0, 1] - classifier.logits(inputs)[0, 1]) / step)
        assert_close(relevance[0, y, x], torch.stack(slopes).abs().max(), rtol=1e-4, atol=1e-9)


def test_of_a_contrast_is_the_gradient_of_the_difference():
    net = linear_net()
    relevance = attribute(classifier_of(net), random_input(1), Saliency(), [Target(2, against=0)]).relevance
    expected = (net[1].weight[2] - net[1].weight[0]).reshape(3, 8, 8).abs().amax(dim=0)
    assert_close(relevance[0], expected, rtol=1e-12, atol=0)


def test_equals_captum():
    net, inputs = conv_net().double(), random_input()
    ours = attribute(classifier_of(net), inputs, Saliency(), [Target(1), Target(2)]).relevance
    theirs = CaptumSaliency(net).attribute(inputs.requires_grad_(), torch.tensor([1, 2])).amax(dim=1)
    assert_close(ours, theirs, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("reduce", "expected"),
    [
        ("max", lambda g: torch.maximum(torch.maximum(g[0].abs(), g[1].abs()), g[2].abs())),
        ("mean", lambda g: (g[0].abs() + g[1].abs() + g[2].abs()) / 3),
        ("norm", lambda g: (g[0] ** 2 + g[1] ** 2 + g[2] ** 2).sqrt()),
        ("sum", lambda g: g[0] + g[1] + g[2]),
    ],
)
def test_reduces_the_colour_channels_as_told_and_only_the_sum_has_signs(reduce, expected):
    net = linear_net()
    attribution = attribute(classifier_of(net), random_input(1), Saliency(reduce), [Target(2)])
    assert_close(attribution.relevance[0], expected(net[1].weight[2].reshape(3, 8, 8)), rtol=1e-12, atol=0)
    assert attribution.signed == (reduce == "sum") == bool((attribution.relevance < 0).any())
