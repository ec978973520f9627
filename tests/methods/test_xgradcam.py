from __future__ import annotations

import pytest
import torch
from helpers import assert_close
from nets import classifier_of, random_input
from torch import nn

from xai_cli import attribute
from xai_cli.methods.gradcam import GradCam
from xai_cli.methods.hirescam import HiResCam
from xai_cli.methods.xgradcam import XGradCam


@pytest.fixture
def features():
    """An activation and a gradient of both signs, `(2, 3, 2, 4)`."""
    return torch.randn(2, 2, 3, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_adds_up_to_gradient_times_activation_channel_by_channel(features):
    activation, gradient = features
    for k in range(3):
        channel = activation[:, k : k + 1], gradient[:, k : k + 1]
        ours, theirs = (method.cam(*channel) for method in (XGradCam(), HiResCam()))
        assert_close(ours.sum(dim=(1, 2)), theirs.sum(dim=(1, 2)), rtol=1e-9, atol=1e-12)
        # The map of a channel is that channel, times a number.
        assert_close(ours / ours[:, :1, :1], channel[0][:, 0] / channel[0][:, 0, :1, :1], rtol=1e-9, atol=0)


def test_equals_gradcam_where_all_positions_have_one_gradient(features):
    activation, gradient = features[0], features[1][:, :, :1, :1].expand(-1, -1, 2, 4)
    assert_close(XGradCam().cam(activation, gradient), GradCam().cam(activation, gradient), rtol=1e-9, atol=1e-12)


def test_gives_a_channel_that_cancels_no_weight_also_if_only_rounding_is_left():
    gradient = torch.tensor([3.0, 1.0, 2.0]).view(1, 1, 1, 3)
    for activation in (torch.zeros(3), torch.tensor([2.0, -1.0, -1.0]), torch.tensor([0.1, 0.6, -0.7])):
        assert not XGradCam().cam(activation.view(1, 1, 1, 3), gradient).any()


def test_weighs_channels_of_small_or_negative_sum_like_any_other(features):
    activation, gradient = features
    expected = XGradCam().cam(activation, gradient)
    assert_close(XGradCam().cam(1e-30 * activation, gradient), 1e-30 * expected, rtol=1e-9, atol=0)
    assert_close(XGradCam().cam(-activation, gradient), -expected, rtol=1e-9, atol=0)


def test_channels_that_a_norm_makes_cancel_have_no_weight():
    features = nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4)
    net = nn.Sequential(*features, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    classifier = classifier_of(net, size=32, dtype=torch.float32)
    inputs = random_input(size=32, dtype=torch.float32)
    explained = [attribute(classifier, inputs, method(layer=["1"], relu=False), "a") for method in (XGradCam, HiResCam)]
    assert explained[0].relevance.abs().max() <= explained[1].relevance.abs().max()
