from __future__ import annotations

import torch
from helpers import assert_close
from nets import classifier_of, conv_net, random_input, seeded
from torch import nn

from xai_cli import attribute
from xai_cli.methods.gradcam import GradCam
from xai_cli.methods.hirescam import HiResCam
from xai_cli.targets import Target

TARGETS = [Target(1), Target(2)]


def test_adds_up_to_the_score_without_its_bias_where_a_linear_head_follows():
    net = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 3)))
    classifier, inputs = classifier_of(net), random_input()
    attribution = attribute(classifier, inputs, HiResCam(layer="1"), TARGETS)
    expected = (net(inputs) - net[3].bias)[[0, 1], [1, 2]]
    assert attribution.signed
    assert_close(attribution.relevance.sum(dim=(1, 2)), expected, rtol=1e-9, atol=1e-12)


def test_equals_gradcam_after_global_average_pooling_and_a_linear_head():
    classifier, inputs = classifier_of(conv_net()), random_input()
    ours = attribute(classifier, inputs, HiResCam(layer="4"), TARGETS).relevance
    expected = attribute(classifier, inputs, GradCam(layer="4", relu=False), TARGETS).relevance
    assert_close(ours, expected, rtol=1e-9, atol=1e-12)


def test_weights_every_position_by_its_own_gradient():
    activation = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 2, 1, 2)
    gradient = torch.tensor([[5.0, -6.0], [-7.0, 8.0]]).view(1, 2, 1, 2)
    assert HiResCam().cam(activation, gradient).tolist() == [[[-16.0, 20.0]]]
