from __future__ import annotations

import pytest
import torch
from helpers import assert_close
from nets import classifier_of, conv_net, random_input
from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection

from xai_cli import attribute
from xai_cli.methods.eigencam import EigenCam
from xai_cli.targets import Target


def eigen_map(activation):
    return EigenCam().cam(activation)


def random_features(channels, positions=5):
    shape = (2, channels, positions, positions)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("channels", [3, 25, 60])
def test_equals_the_projection_of_pytorch_grad_cam_but_for_its_arbitrary_sign(channels):
    activation = random_features(channels)
    ours, theirs = eigen_map(activation), torch.from_numpy(get_2d_projection(activation.numpy()))
    sign = (ours * theirs).sum(dim=(1, 2), keepdim=True).sign()
    assert_close(ours, sign * theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [3, 60])
@pytest.mark.parametrize("strength", [9, -9])
def test_marks_what_stands_out_whether_its_features_are_stronger_or_weaker(channels, strength):
    activation = 0.01 * random_features(channels) + 4
    activation[:, :, 1:3, 2] += strength
    marked = torch.zeros(2, 5, 5, dtype=torch.float64)
    marked[:, 1:3, 2] = 1
    # Two positions of 25 stand at 9 in each channel, and the rest at none, before the mean is taken off.
    expected = 9 * channels**0.5 * (marked - 2 / 25)
    assert_close(eigen_map(activation), expected, rtol=0, atol=0.2)


@pytest.mark.parametrize("channels", [3, 60])
def test_bears_features_without_a_first_component(channels):
    for activation in (torch.zeros(2, channels, 5, 5), torch.full((2, channels, 5, 5), 3.0)):
        assert not eigen_map(activation).any()
    # Every direction has the same spread.
    assert eigen_map(torch.eye(25).view(1, 25, 5, 5)).isfinite().all()


def test_is_the_same_for_every_class_and_says_so():
    classifier, inputs = classifier_of(conv_net()), random_input()
    one = attribute(classifier, inputs, EigenCam(layer="4"), [Target(0)] * 2)
    other = attribute(classifier, inputs, EigenCam(layer="4"), [Target(2, against=1)] * 2)
    assert torch.equal(one.relevance, other.relevance)
    assert one.notes == ("the map is the same for every class",)
    assert one.relevance.min() == 0
    assert attribute(classifier, inputs, EigenCam(layer="4", relu=False), [Target(0)] * 2).relevance.min() < 0
