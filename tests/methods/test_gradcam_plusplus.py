from __future__ import annotations

import pytest
import torch
from helpers import assert_close

from xai_cli.methods.gradcam import GradCam
from xai_cli.methods.gradcam_plusplus import GradCamPlusPlus


@pytest.fixture
def features():
    """An activation after a ReLU and a gradient with zeros in it, `(2, 3, 2, 4)`."""
    generator = torch.Generator().manual_seed(0)
    activation, gradient = torch.randn(2, 2, 3, 2, 4, generator=generator, dtype=torch.float64)
    return activation.relu(), gradient * (torch.rand(gradient.shape, generator=generator) > 0.3)


def test_equals_the_published_algorithm(features):
    activation, gradient = features
    expected = torch.zeros(2, 2, 4, dtype=torch.float64)
    for b in range(2):
        for k in range(3):
            weight, total = 0.0, activation[b, k].sum()
            for g in gradient[b, k].flatten():
                if g != 0:
                    weight += max(g, 0) * g**2 / (2 * g**2 + total * g**3)
            expected[b] += weight * activation[b, k]
    assert_close(GradCamPlusPlus().cam(activation, gradient), expected, rtol=1e-12, atol=1e-12)


def test_does_not_swallow_small_gradients(features):
    activation, gradient = features
    # The product with the sum of activations vanishes, so half of the positive gradients is left.
    expected = (gradient.relu().sum(dim=(2, 3), keepdim=True) * activation).sum(dim=1) / 2
    assert_close(GradCamPlusPlus().cam(activation, 1e-30 * gradient) / 1e-30, expected, rtol=1e-12, atol=0)


def test_equals_gradcam_up_to_scale_if_every_channel_has_one_positive_gradient_and_the_same_part_in_the_score(features):
    activation = features[0]
    gradient = (3 / activation.sum(dim=(2, 3), keepdim=True)).expand_as(activation)
    scaled = GradCam().cam(activation, gradient) * 8 / (2 + 3)
    assert_close(GradCamPlusPlus().cam(activation, gradient), scaled, rtol=1e-12, atol=0)


def test_has_no_pole_where_activations_sum_to_a_negative_number():
    activation = torch.tensor([-3.0, 1.0]).view(1, 1, 1, 2)
    gradient = torch.ones(1, 1, 1, 2)  # 2 g^2 + S g^3 = 0
    assert_close(GradCamPlusPlus().cam(activation, gradient), activation[0], rtol=0, atol=0)
