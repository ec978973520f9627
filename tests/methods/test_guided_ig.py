from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from helpers import assert_close
from nets import Quadratic, classifier_of, conv_net, linear_net, random_input
from torch import nn

from xai_cli import attribute
from xai_cli.methods.guided_ig import GuidedIntegratedGradients
from xai_cli.targets import Target

TARGETS = [Target(1), Target(2)]


def published(gradient_at, begin, end, steps, fraction, max_distance):
    """The points of the path of the paper's algorithm from `begin` to `end` `(N,)`."""
    x, whole = begin.clone(), (end - begin).abs().sum()
    points = [x.clone()]
    for step in range(steps):
        goal = (step + 1) / steps
        bounds = [begin + (end - begin) * min(max(goal + side * max_distance, 0), 1) for side in (-1, 1)]
        cost, target = gradient_at(x).abs().tolist(), float(whole * (1 - goal))
        gamma = math.inf
        while gamma > 1:
            for i in range(len(x)):
                if abs(x[i] - begin[i]) < abs(bounds[0][i] - begin[i]):
                    x[i] = bounds[0][i]
                if abs(x[i] - bounds[1][i]) < 1e-13:
                    cost[i] = math.inf
            missing = float((end - x).abs().sum()) - target
            if abs(missing) < 1e-9:
                break
            threshold = sorted(cost)[int(fraction * (len(x) - 1))]
            chosen = [i for i in range(len(x)) if cost[i] <= threshold and cost[i] < math.inf]
            reach = sum(float((bounds[1][i] - x[i]).abs()) for i in chosen)
            gamma = missing / reach if reach > 0 else math.inf
            for i in chosen:
                x[i] += min(gamma, 1) * (bounds[1][i] - x[i])
        points.append(x.clone())
    return points


@pytest.mark.parametrize(("fraction", "max_distance"), [(0.25, 0.02), (0.1, 0.3), (0.6, 1)])
@pytest.mark.parametrize("chunk", [1, 2, 8])
def test_goes_the_published_path(fraction, max_distance, chunk):
    net, inputs, steps = conv_net().double(), random_input(), 6
    classifier = classifier_of(net)
    begin = classifier.colour("black").double().flatten()

    expected = []
    for picture, target in zip(inputs, TARGETS, strict=True):

        def gradient_at(point, index=target.index):
            point = point.view(1, 3, 8, 8).requires_grad_()
            return torch.autograd.grad(net(point)[0, index], point)[0].flatten()

        points = published(gradient_at, begin, picture.flatten(), steps, fraction, max_distance)
        assert_close(points[-1], picture.flatten(), rtol=0, atol=1e-9)
        shares = torch.zeros_like(begin)
        for before, after in pairwise(points):
            gradient = gradient_at(before) + 4 * gradient_at((before + after) / 2) + gradient_at(after)
            shares += (after - before) * gradient / 6
        expected.append(shares.view(3, 8, 8).sum(dim=0))
    method = GuidedIntegratedGradients(steps, fraction, max_distance, "black")
    ours = attribute(classifier, inputs, method, TARGETS, chunk=chunk)
    assert_close(ours.relevance, torch.stack(expected), rtol=1e-7, atol=1e-10)
    assert ours.signed
    with torch.no_grad():
        change = (net(inputs) - net(begin.view(1, 3, 8, 8)))[[0, 1], [1, 2]]
    gap = (torch.stack(expected).sum(dim=(1, 2)) - change).abs() / change.abs()
    assert_close(ours.checks["completeness_gap"], gap, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("fraction", "max_distance"), [(1, 1), (0.25, 0)])
def test_is_a_straight_line_if_all_values_move_or_none_may_leave_it(fraction, max_distance):
    net, inputs, steps = conv_net().double(), random_input(), 6
    black = classifier_of(net).colour("black").double()
    expected = torch.zeros_like(inputs)
    for half, weight in enumerate([1, *[4, 2] * (steps - 1), 4, 1]):
        point = torch.lerp(black.expand_as(inputs), inputs, half / (2 * steps)).requires_grad_()
        (gradient,) = torch.autograd.grad(net(point)[[0, 1], [1, 2]].sum(), point)
        expected += (inputs - black) * gradient * weight / (6 * steps)
    method = GuidedIntegratedGradients(steps, fraction, max_distance, "black")
    ours = attribute(classifier_of(net), inputs, method, TARGETS).relevance
    assert_close(ours, expected.sum(dim=1), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("net", [linear_net(), Quadratic()])
@pytest.mark.parametrize("baseline", ["black", "white", "mean", "blur"])
def test_of_a_linear_and_of_a_quadratic_model_is_exact_with_one_step(net, baseline):
    method = GuidedIntegratedGradients(steps=1, baseline=baseline)
    attribution = attribute(classifier_of(net), random_input(), method, TARGETS)
    assert_close(attribution.checks["completeness_gap"], torch.zeros(2), rtol=0, atol=1e-12)
    assert attribution.relevance.abs().max() > 0.01


def test_of_a_picture_that_is_its_own_baseline_is_zero_without_a_gap():
    classifier = classifier_of(conv_net())
    attribution = attribute(
        classifier, classifier.colour("white").double(), GuidedIntegratedGradients(baseline="white")
    )
    assert attribution.relevance.abs().max() == 0
    assert attribution.checks["completeness_gap"].tolist() == [0]


def test_comes_to_an_end_if_the_gradient_is_no_number():
    class Broken(nn.Module):
        def forward(self, x):
            return (x - x).sqrt().mean(dim=3).mean(dim=2)

    attribution = attribute(classifier_of(Broken()), random_input(), GuidedIntegratedGradients(steps=3), TARGETS)
    assert attribution.relevance.isnan().all()
