from __future__ import annotations

import torch
from helpers import assert_close
from nets import Quadratic, classifier_of, conv_net, random_input

from xai_cli import attribute
from xai_cli.methods.saliency import Saliency
from xai_cli.methods.sensitivity import Sensitivity
from xai_cli.targets import Target

TARGETS = [Target(1), Target(2)]


def test_of_a_quadratic_model_is_known():
    net, inputs = Quadratic(), random_input()
    attribution = attribute(classifier_of(net), inputs, Sensitivity(), TARGETS)
    weights = net.linear.weight[[1, 2]].reshape(2, 3, 8, 8)
    assert_close(attribution.relevance, (2 * weights * inputs).square().sum(dim=1), rtol=1e-12, atol=0)
    assert not attribution.signed


def test_is_the_square_of_the_gradients_norm_and_adds_up_to_its_squared_length():
    classifier, inputs = classifier_of(conv_net()), random_input()
    relevance = attribute(classifier, inputs, Sensitivity(), TARGETS).relevance
    assert_close(relevance, attribute(classifier, inputs, Saliency("norm"), TARGETS).relevance ** 2, rtol=1e-9, atol=0)
    points = inputs.clone().requires_grad_()
    classifier.logits(points)[[0, 1], [1, 2]].sum().backward()
    assert_close(relevance.sum(dim=(1, 2)), (points.grad**2).sum(dim=(1, 2, 3)), rtol=1e-9, atol=0)


def test_is_how_much_the_score_gains_by_a_small_step_along_the_gradient_in_a_part_of_the_picture():
    classifier, inputs = classifier_of(conv_net()), random_input(1)
    relevance = attribute(classifier, inputs, Sensitivity(), TARGETS[:1]).relevance[0]
    points = inputs.clone().requires_grad_()
    classifier.logits(points)[0, 1].backward()
    step = torch.zeros_like(inputs)
    step[..., 2:5, 1:4] = 1e-6 * points.grad[..., 2:5, 1:4]
    gain = classifier.logits(inputs + step)[0, 1] - classifier.logits(inputs)[0, 1]
    assert_close(gain, 1e-6 * relevance[2:5, 1:4].sum(), rtol=1e-4, atol=0)
