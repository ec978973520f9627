from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import assert_close
from nets import Quadratic, classifier_of, conv_net, linear_net, random_input
from scipy.fft import dctn, idctn
from scipy.ndimage import gaussian_filter
from torch import nn

from xai_cli import attribute
from xai_cli.methods.blur_ig import BlurIntegratedGradients, Blurs
from xai_cli.targets import Target


def blurred(picture, sigma):
    """A picture `(C, h, w)` blurred in the cosine basis, by SciPy."""
    waves = [np.pi * np.arange(side) / side for side in picture.shape[1:]]
    kept = np.exp(-(sigma**2) * (waves[0][:, None] ** 2 + waves[1] ** 2) / 2)
    return torch.from_numpy(idctn(dctn(picture.numpy(), axes=(1, 2)) * kept, axes=(1, 2)))


class TestBlurs:
    # A kernel of pixels is the blur of waves only if it is wide enough to be smooth.
    @pytest.mark.parametrize("sigma", [2.0, 3.5, 9.0])
    def test_are_gaussian_and_mirror_the_picture_at_its_borders(self, sigma):
        inputs = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        ours = Blurs.of(inputs).at(torch.tensor([sigma, 1.0], dtype=torch.float64), torch.tensor([1, 0]))
        expected = gaussian_filter(inputs[1].numpy(), (0, sigma, sigma), mode="reflect", truncate=9)
        assert_close(ours[0], expected, rtol=0, atol=1e-8)

    def test_of_no_width_are_the_picture_and_of_one_colour_as_well(self):
        inputs = random_input(3, dtype=torch.float32)
        inputs[2] = torch.tensor([0.1, 0.7, -0.3])[:, None, None]
        ours = Blurs.of(inputs).at(torch.tensor([0.0, 0.0, 5.0]), torch.arange(3))
        assert torch.equal(ours, inputs)


def test_is_the_integral_along_the_blurs():
    net, inputs, steps = conv_net().double(), random_input(2), 5
    expected = torch.zeros(2, 8, 8, dtype=torch.float64)
    sigmas = [(1 + 0.22 * 8) ** (1 - k / steps) - 1 for k in range(steps + 1)]
    for row, label in enumerate((1, 2)):
        for wide, narrow in pairwise(sigmas):
            begin, end = blurred(inputs[row], wide), blurred(inputs[row], narrow)
            middle = ((begin + end) / 2)[None].requires_grad_()
            (gradient,) = torch.autograd.grad(net(middle)[0, label], middle)
            expected[row] += (gradient[0] * (end - begin)).sum(dim=0)
    ours = attribute(classifier_of(net), inputs, BlurIntegratedGradients(steps=steps), [Target(1), Target(2)])
    assert_close(ours.relevance, expected, rtol=1e-9, atol=1e-12)
    assert ours.signed
    with torch.no_grad():
        ends, begins = net(inputs), net(torch.stack([blurred(picture, 0.22 * 8) for picture in inputs]))
    change = (ends - begins)[[0, 1], [1, 2]]
    gap = (expected.sum(dim=(1, 2)) - change).abs() / change.abs()
    assert_close(ours.checks["completeness_gap"], gap, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("net", [linear_net(), Quadratic()])
def test_of_a_linear_and_of_a_quadratic_model_is_exact_with_one_step(net):
    inputs = random_input(2)
    attribution = attribute(classifier_of(net), inputs, BlurIntegratedGradients(steps=1), [Target(2)] * 2)
    assert_close(attribution.checks["completeness_gap"], torch.zeros(2), rtol=0, atol=1e-12)
    assert attribution.relevance.abs().max() > 0.01


def test_gap_falls_with_the_steps():
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Linear(16, 3))
    for layer in (net[1], net[3]):
        nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(3), std=0.2)
    classifier, inputs = classifier_of(net), random_input(3)
    gaps = [
        attribute(classifier, inputs, BlurIntegratedGradients(steps=steps), [Target(1)] * 3).checks["completeness_gap"]
        for steps in (2, 20)
    ]
    assert gaps[0].max() > 0.01
    assert gaps[1].max() < 0.1 * gaps[0].max()  # the error of a midpoint rule falls with the square


def test_of_a_picture_of_one_colour_is_zero_without_a_gap():
    classifier = classifier_of(conv_net())
    attribution = attribute(classifier, classifier.colour("white").double(), BlurIntegratedGradients())
    assert attribution.relevance.abs().max() == 0
    assert attribution.checks["completeness_gap"].tolist() == [0]
