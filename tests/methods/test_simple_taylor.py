from __future__ import annotations

import pytest
import torch
from helpers import assert_close
from nets import classifier_of, conv_net, linear_net, random_input
from torch import nn

from xai_cli import attribute
from xai_cli.methods.simple_taylor import SimpleTaylor
from xai_cli.targets import Target

TARGETS = [Target(0), Target(1), Target(2)]


class Sphere(nn.Module):
    """Scores `|x|^2 - level`, whose roots are a sphere; none for a negative level."""

    def __init__(self, level):
        super().__init__()
        self.level = level

    def forward(self, x):
        return (x.square().sum((1, 2, 3)) - self.level)[:, None].expand(-1, 3)


def without_biases(net):
    for layer in net.modules():
        if getattr(layer, "bias", None) is not None:
            layer.bias.data.zero_()
    return net


def test_from_the_origin_is_gradient_x_input_and_exact_without_biases():
    classifier, inputs = classifier_of(without_biases(conv_net())), random_input(3)
    attribution = attribute(classifier, inputs, SimpleTaylor(), TARGETS)
    points = inputs.clone().requires_grad_()
    scores = classifier.logits(points).diagonal()
    (gradient,) = torch.autograd.grad(scores.sum(), points)
    assert_close(attribution.relevance, (inputs * gradient).sum(dim=1), rtol=1e-12, atol=0)
    assert_close(attribution.relevance.sum(dim=(1, 2)), scores, rtol=1e-10, atol=0)
    assert_close(attribution.checks["completeness_gap"], torch.zeros(3), rtol=0, atol=1e-10)
    assert attribution.checks["score_at_origin"].tolist() == [0, 0, 0]


def test_from_the_origin_of_a_linear_model_misses_the_bias_and_says_so():
    net, inputs = linear_net(), random_input(3)
    attribution = attribute(classifier_of(net), inputs, SimpleTaylor(), TARGETS)
    scores, biases = net(inputs).diagonal(), net[1].bias
    assert_close(attribution.relevance.sum(dim=(1, 2)), scores - biases, rtol=1e-10, atol=0)
    assert_close(attribution.checks["completeness_gap"], torch.zeros(3), rtol=0, atol=1e-12)
    assert_close(attribution.checks["score_at_origin"], (biases / scores).abs(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("steps", [1, 20])
def test_from_the_nearest_root_of_a_linear_model_is_exact(steps):
    net, inputs = linear_net(), random_input(3)
    attribution = attribute(classifier_of(net), inputs, SimpleTaylor("nearest", steps), TARGETS)
    scores, weight = net(inputs).diagonal()[:, None], net[1].weight
    assert scores.min() < 0 < scores.max()
    # The root lies |f| / |w| away, along w: x - x~ = f w / |w|^2.
    expected = scores * weight.square() / weight.square().sum(dim=1, keepdim=True)
    assert_close(attribution.relevance, expected.reshape(3, 3, 8, 8).sum(dim=1), rtol=1e-9, atol=0)
    for gap in attribution.checks.values():
        assert_close(gap, torch.zeros(3), rtol=0, atol=1e-12)


@pytest.mark.parametrize("level", [3.0, 400.0], ids=["inside", "outside"])
def test_finds_the_nearest_root_of_a_curved_score(level):
    inputs = random_input(2)
    attribution = attribute(classifier_of(Sphere(level)), inputs, SimpleTaylor("nearest", 60), TARGETS[:2])
    root = inputs * (level**0.5 / inputs.flatten(1).norm(dim=1))[:, None, None, None]
    assert_close(attribution.relevance, ((inputs - root) * 2 * root).sum(dim=1), rtol=1e-9, atol=1e-12)
    assert attribution.checks["root_gap"].max() < 1e-12


def test_takes_the_best_point_where_there_is_no_root():
    inputs = random_input(1)
    attribution = attribute(classifier_of(Sphere(-50.0)), inputs, SimpleTaylor("nearest", 30), TARGETS[:1])
    score = inputs.square().sum() + 50
    assert attribution.relevance.isfinite().all()
    assert 50 / score <= attribution.checks["root_gap"][0] < 1


def test_of_a_picture_that_is_a_root_is_zero_without_gaps():
    classifier = classifier_of(without_biases(linear_net()))
    for root in ("origin", "nearest"):
        attribution = attribute(classifier, torch.zeros_like(random_input(1)), SimpleTaylor(root), "a")
        assert attribution.relevance.abs().max() == 0
        assert [gap.tolist() for gap in attribution.checks.values()] == [[0], [0]]


def test_every_picture_finds_its_own_root():
    classifier, inputs = classifier_of(conv_net()), random_input(3)
    method = SimpleTaylor("nearest")
    together = attribute(classifier, inputs, method, TARGETS, chunk=2)
    alone = [attribute(classifier, inputs[i : i + 1], method, TARGETS[i : i + 1], chunk=2) for i in range(3)]
    assert_close(together.relevance, torch.cat([each.relevance for each in alone]), rtol=1e-9, atol=1e-15)
    assert (together.checks["root_gap"] < 1e-3).tolist() == [True, False, False]
