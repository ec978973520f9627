from __future__ import annotations

import pytest
import torch
from captum.attr import IntegratedGradients as CaptumIntegratedGradients
from helpers import assert_close
from nets import Quadratic, classifier_of, conv_net, linear_net, random_input, seeded
from torch import nn

from xai_cli import attribute
from xai_cli.methods.ig import IntegratedGradients
from xai_cli.operators.folding import fold_batch_norm
from xai_cli.targets import Target


@pytest.mark.parametrize("baseline", ["black", "white", "mean", "blur"])
def test_of_a_linear_model_is_exact_with_one_step(baseline):
    net, inputs = linear_net(), random_input(1)
    classifier = classifier_of(net)
    method = IntegratedGradients(steps=1, baseline=baseline)
    attribution = attribute(classifier, inputs, method, [Target(2)])
    assert_close(attribution.checks["completeness_gap"], torch.zeros(1), rtol=0, atol=1e-12)
    if baseline != "blur":
        difference = inputs[0] - classifier.colour(baseline).double()[0]
        expected = (net[1].weight[2].reshape(3, 8, 8) * difference).sum(dim=0)
        assert_close(attribution.relevance[0], expected, rtol=1e-12, atol=1e-12)


def test_of_a_quadratic_model_is_exact_with_one_midpoint():
    method = IntegratedGradients(steps=1, quadrature="midpoint")
    gap = attribute(classifier_of(Quadratic()), random_input(), method, [Target(0)] * 2).checks["completeness_gap"]
    assert_close(gap, torch.zeros(2), rtol=0, atol=1e-12)


def test_completeness_gap_is_measured_and_falls_with_the_steps():
    classifier, inputs, targets = classifier_of(conv_net()), random_input(4), [Target(1)] * 4
    gaps = {}
    for steps in (2, 512):
        attribution = attribute(classifier, inputs, IntegratedGradients(steps=steps, baseline="black"), targets)
        black = classifier.logits(classifier.colour("black").double())[0, 1]
        change = classifier.logits(inputs)[:, 1] - black
        expected = (attribution.relevance.sum(dim=(1, 2)) - change).abs() / change.abs()
        assert_close(attribution.checks["completeness_gap"], expected, rtol=1e-9, atol=1e-12)
        gaps[steps] = float(expected.max())
    assert gaps[2] > 0.2
    assert gaps[512] < 0.01


def test_of_a_picture_that_is_its_own_baseline_is_zero_without_a_gap():
    classifier = classifier_of(conv_net())
    attribution = attribute(classifier, classifier.colour("white").double(), IntegratedGradients(baseline="white"))
    assert attribution.relevance.abs().max() == 0
    assert attribution.checks["completeness_gap"].tolist() == [0]


def test_does_not_see_how_the_function_is_implemented():
    net = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    )
    net[1].running_mean.uniform_(-1, 1)
    net[1].running_var.uniform_(0.5, 2)
    inputs, method = random_input(), IntegratedGradients(steps=10)
    whole = attribute(classifier_of(net), inputs, method, [Target(0)] * 2).relevance
    assert fold_batch_norm(net, inputs) == {"0": "1"}
    folded = attribute(classifier_of(net), inputs, method, [Target(0)] * 2).relevance
    assert_close(folded, whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
def test_does_not_depend_on_how_its_steps_are_packed(chunk):
    classifier, inputs = classifier_of(conv_net()), random_input(3)
    targets = [Target(0), Target(1), Target(2)]
    method = IntegratedGradients(steps=7)
    expected = attribute(classifier, inputs, method, targets, chunk=21).relevance
    assert_close(attribute(classifier, inputs, method, targets, chunk=chunk).relevance, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("quadrature", "captums"), [("gauss-legendre", "gausslegendre"), ("midpoint", "riemann_middle")]
)
def test_equals_captum(quadrature, captums):
    net, inputs = conv_net().double(), random_input()
    classifier = classifier_of(net)
    ours = attribute(classifier, inputs, IntegratedGradients(20, "white", quadrature), [Target(1), Target(2)])
    theirs, gap = CaptumIntegratedGradients(net).attribute(
        inputs,
        classifier.colour("white").double().expand_as(inputs),
        target=torch.tensor([1, 2]),
        n_steps=20,
        method=captums,
        return_convergence_delta=True,
    )
    assert_close(ours.relevance, theirs.sum(dim=1), rtol=1e-5, atol=1e-12)
    change = (theirs.sum(dim=(1, 2, 3)) - gap).abs()
    assert_close(ours.checks["completeness_gap"], gap.abs() / change, rtol=1e-5, atol=1e-9)


def test_refuses_more_gauss_legendre_nodes_than_can_be_had():
    with pytest.raises(ValueError, match="--steps expects at most 1000 for gauss-legendre, found 5000"):
        IntegratedGradients(steps=5000, quadrature="gauss-legendre")


def test_blur_starts_from_a_picture_without_detail():
    classifier = classifier_of(linear_net(32), size=32)
    inputs = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    inputs[:, :, ::2] = 1.0  # stripes one pixel wide, of which blurring leaves an even half
    net = classifier.module[1].weight[0].reshape(3, 32, 32)
    relevance = attribute(classifier, inputs, IntegratedGradients(steps=1, baseline="blur"), "a").relevance
    assert_close(relevance[0], (net * (inputs[0] - 0.5)).sum(dim=0), rtol=0, atol=0.02)
