from __future__ import annotations

import pytest
import torch
from captum.attr import IntegratedGradients as CaptumIntegratedGradients
from helpers import assert_close
from nets import Quadratic, classifier_of, conv_net, linear_net, random_input, seeded
from torch import Tensor, nn

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
        attribution = attribute(
            classifier, inputs, IntegratedGradients(steps=steps, tolerance=0, baseline="black"), targets
        )
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
    inputs, method = random_input(), IntegratedGradients(steps=10, tolerance=0)
    whole = attribute(classifier_of(net), inputs, method, [Target(0)] * 2).relevance
    assert fold_batch_norm(net, inputs) == {"0": "1"}
    folded = attribute(classifier_of(net), inputs, method, [Target(0)] * 2).relevance
    assert_close(folded, whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("quadrature", "captums"), [("gauss-legendre", "gausslegendre"), ("midpoint", "riemann_middle")]
)
def test_equals_captum(quadrature, captums):
    net, inputs = conv_net().double(), random_input()
    classifier = classifier_of(net)
    ours = attribute(
        classifier,
        inputs,
        IntegratedGradients(baseline="white", steps=20, tolerance=0, quadrature=quadrature),
        [Target(1), Target(2)],
    )
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


class Steep(nn.Module):
    """Scores that are the sum of the pixels and a rise within the first hundredth of the way from zero to any input,
    and how many points were differentiated.
    """

    differentiated = 0

    def forward(self, x: Tensor) -> Tensor:
        self.differentiated += len(x) * x.requires_grad
        brightness = x.flatten(1).square().mean(dim=1, keepdim=True).sqrt()
        return torch.cat([brightness + (200 * brightness).clamp(max=2), brightness, -brightness], dim=1)


class Jump(Steep):
    """A rise that no gradient tells of."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 10 * (x.flatten(1).norm(dim=1, keepdim=True) > 1)


@pytest.mark.parametrize("quadrature", ["midpoint", "gauss-legendre"])
@pytest.mark.parametrize("net", [conv_net, Steep])
def test_adds_up_within_the_tolerance_on_every_picture(net, quadrature):
    classifier, inputs = classifier_of(net()), random_input(6)
    fixed = attribute(classifier, inputs, IntegratedGradients(steps=4, tolerance=0, quadrature=quadrature), "a")
    assert fixed.checks["completeness_gap"].max() > 0.05
    change = (classifier.logits(inputs) - classifier.logits(torch.zeros_like(inputs)))[:, 0]
    for tolerance in (0.01, 0.001):
        method = IntegratedGradients(steps=4, tolerance=tolerance, quadrature=quadrature)
        attribution = attribute(classifier, inputs, method, "a")
        gap = (attribution.relevance.sum(dim=(1, 2)) - change).abs() / change.abs()
        assert gap.max() <= tolerance
        assert_close(attribution.checks["completeness_gap"], gap, rtol=1e-6, atol=1e-12)


def test_comes_nearer_to_the_integral_where_the_score_is_steep():
    classifier, inputs = classifier_of(Steep()), random_input(1)
    exact = attribute(classifier, inputs, IntegratedGradients(steps=20_000, tolerance=0), "a", chunk=1000).relevance
    refined = attribute(classifier, inputs, IntegratedGradients(steps=4), "a")
    steps = int(refined.checks["gradient_evaluations"])
    fixed = attribute(classifier, inputs, IntegratedGradients(steps=steps, tolerance=0), "a").relevance
    assert (refined.relevance - exact).abs().max() < 0.1 * (fixed - exact).abs().max()


def test_only_pictures_over_the_tolerance_get_more_gradients():
    classifier, inputs, targets = classifier_of(conv_net()), random_input(6), [Target(0)] * 6
    fixed = attribute(classifier, inputs, IntegratedGradients(steps=8, tolerance=0), targets)
    refined = attribute(classifier, inputs, IntegratedGradients(steps=8, tolerance=0.02), targets)
    within = fixed.checks["completeness_gap"] <= 0.02
    assert 0 < within.sum() < 6
    assert fixed.checks["gradient_evaluations"].tolist() == [8] * 6
    assert (refined.checks["gradient_evaluations"] == 8).tolist() == within.tolist()
    assert torch.equal(refined.relevance[within], fixed.relevance[within])
    assert refined.checks["gradient_evaluations"].max() < 40


def test_counts_every_gradient_it_takes():
    classifier, inputs = classifier_of(Steep()), random_input(3)
    counts = attribute(classifier, inputs, IntegratedGradients(steps=5), "a", chunk=1).checks["gradient_evaluations"]
    assert counts.sum() == classifier.module.differentiated > 15
    linear = attribute(classifier_of(linear_net()), inputs, IntegratedGradients(steps=1), "a")
    assert linear.checks["gradient_evaluations"].tolist() == [1, 1, 1]


def test_gives_up_at_500_gradients_if_the_score_jumps():
    attribution = attribute(classifier_of(Jump()), random_input(2), IntegratedGradients(), "a", chunk=100)
    assert attribution.checks["gradient_evaluations"].tolist() == [500, 500]
    assert attribution.checks["completeness_gap"].min() > 0.5


@pytest.mark.parametrize("baseline", ["mean", "noise"])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_refined_does_not_depend_on_how_its_points_are_packed(chunk, baseline):
    classifier, inputs, method = classifier_of(conv_net()), random_input(3), refining(baseline)
    expected = attribute(classifier, inputs, method, "b", chunk=8)
    assert len(set(expected.checks["gradient_evaluations"].tolist())) > 1
    actual = attribute(classifier, inputs, method, "b", chunk=chunk)
    assert_close(actual.relevance, expected.relevance, rtol=1e-9, atol=1e-12)
    assert torch.equal(actual.checks["gradient_evaluations"], expected.checks["gradient_evaluations"])


@pytest.mark.parametrize("baseline", ["mean", "noise"])
def test_refined_does_not_depend_on_the_other_pictures(baseline):
    classifier, inputs, method = (
        classifier_of(conv_net(), dtype=torch.float32),
        random_input(5).float(),
        refining(baseline),
    )
    whole = attribute(classifier, inputs, method, "b").relevance
    order = [3, 0, 4]
    assert torch.equal(attribute(classifier, inputs[order], method, "b").relevance, whole[order])


def refining(baseline: str) -> IntegratedGradients:
    return IntegratedGradients(baseline=baseline, baselines=2, steps=4, tolerance=0.005)


@pytest.mark.parametrize("baseline", ["folder", "noise"])
def test_of_several_baselines_adds_up_to_the_mean_change(baseline, baseline_folder):
    classifier, inputs = classifier_of(conv_net()), random_input()
    files = {"baseline_folder": baseline_folder} if baseline == "folder" else {}
    method = IntegratedGradients(baseline=baseline, baselines=3, steps=2, tolerance=0.01, **files)
    attribution = attribute(classifier, inputs, method, "b")
    assert attribution.checks["completeness_gap"].max() <= 0.01
    if baseline == "folder":
        starts = torch.cat([classifier.read([baseline_folder / f"{name}.png"]) for name in "abd"]).double()
        change = classifier.logits(inputs)[:, 1] - classifier.logits(starts)[:, 1].mean()
        assert_close(attribution.relevance.sum(dim=(1, 2)), change, rtol=0.0101, atol=0)
    assert attribution.checks["gradient_evaluations"].max() > 6
