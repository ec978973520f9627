from __future__ import annotations

import pytest
import torch
from captum.attr import DeepLift as CaptumDeepLift
from helpers import assert_close
from nets import classifier_of, conv_net, linear_net, random_input, seeded
from torch import nn

from xai_cli import attribute
from xai_cli.methods.deeplift import DeepLift
from xai_cli.targets import Target

TARGETS = [Target(1), Target(2)]


def relu_net(bias: bool = True) -> nn.Module:
    """Rectifiers that are modules, each used once."""
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, bias=bias), nn.ReLU(), nn.Conv2d(4, 4, 2, bias=bias), nn.ReLU(), nn.Flatten(),
            nn.Linear(16, 5, bias=bias), nn.ReLU(), nn.Linear(5, 3, bias=bias),
        )
    )  # fmt: skip


@pytest.mark.parametrize("rule", ["rescale", "reveal-cancel"])
@pytest.mark.parametrize("baseline", ["zero", "black", "white", "blur"])
def test_of_a_linear_model_is_weight_times_change(baseline, rule):
    inputs, classifier = random_input(1), classifier_of(linear_net())
    attribution = attribute(classifier, inputs, DeepLift(rule=rule, baseline=baseline), [Target(2)])
    assert attribution.rule == rule
    assert_close(attribution.checks["completeness_gap"], torch.zeros(1), rtol=0, atol=1e-12)
    if baseline != "blur":
        weight = classifier.module[1].weight[2].reshape(3, 8, 8)
        expected = (weight * (inputs[0] - classifier.colour(baseline).double()[0])).sum(dim=0)
        assert_close(attribution.relevance[0], expected, rtol=1e-9, atol=1e-12)


def test_from_zero_is_gradient_times_input_on_a_net_without_biases():
    net, inputs = relu_net(bias=False), random_input().requires_grad_()
    relevance = attribute(classifier_of(net), inputs.detach(), DeepLift(), TARGETS).relevance
    (gradient,) = torch.autograd.grad(net(inputs)[[0, 1], [1, 2]].sum(), inputs)
    assert_close(relevance, (gradient * inputs).sum(dim=1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("baseline", ["zero", "white"])
def test_equals_captum_where_captum_is_right(baseline):
    net, inputs = relu_net().double(), random_input()
    classifier = classifier_of(net)
    ours = attribute(classifier, inputs, DeepLift(baseline=baseline), TARGETS).relevance
    start = classifier.colour(baseline).double().expand_as(inputs)
    theirs = CaptumDeepLift(net).attribute(inputs.clone(), start, target=torch.tensor([1, 2]))
    assert_close(ours, theirs.sum(dim=1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", ["rescale", "reveal-cancel"])
def test_sums_to_the_change_of_the_score_from_any_baseline(rule, baseline_folder):
    classifier, inputs = classifier_of(conv_net()), random_input()
    maps = []
    for options in (
        {"baseline": "black"},
        {"baseline": "white"},
        {"baseline": "folder", "baseline_folder": baseline_folder},
    ):
        attribution = attribute(classifier, inputs, DeepLift(rule=rule, **options), TARGETS)
        assert attribution.checks["completeness_gap"].max() < 1e-9
        maps.append(attribution.relevance)
    black = classifier.logits(classifier.colour("black").double())[0, [1, 2]]
    change = classifier.logits(inputs)[[0, 1], [1, 2]] - black
    assert_close(maps[0].sum(dim=(1, 2)), change, rtol=1e-9, atol=0)
    assert all(not torch.allclose(maps[0], other) for other in maps[1:])


def test_of_a_picture_that_is_its_own_baseline_is_zero_without_a_gap():
    classifier = classifier_of(conv_net())
    attribution = attribute(classifier, classifier.colour("white").double(), DeepLift(baseline="white"))
    assert attribution.relevance.abs().max() == 0
    assert attribution.checks["completeness_gap"].tolist() == [0]


def test_may_be_compared_with_noise():
    classifier, inputs = classifier_of(conv_net()), random_input()
    maps = [attribute(classifier, inputs, DeepLift(baseline="noise", baselines=number), TARGETS) for number in (1, 3)]
    assert all(each.checks["completeness_gap"].max() < 1e-9 for each in maps)
    assert not torch.allclose(maps[0].relevance, maps[1].relevance)


def test_compares_the_scores_under_the_rules_with_the_plain_ones_if_there_are_any():
    classifier, inputs = classifier_of(conv_net()), random_input()
    assert attribute(classifier, inputs, DeepLift(), "b").checks["forward_gap"].max() < 1e-12
    assert set(attribute(classifier, inputs, DeepLift(), TARGETS).checks) == {"completeness_gap"}


def test_refuses_an_operator_without_rule_unless_it_is_allowed():
    net = seeded(lambda: nn.Sequential(nn.Flatten(), Unruled(), nn.Linear(192, 3)))
    classifier, inputs = classifier_of(net), random_input()
    with pytest.raises(ValueError, match="operator 'logcumsumexp' in layer '1' has no rule"):
        attribute(classifier, inputs, DeepLift(), TARGETS)
    attribution = attribute(classifier, inputs, DeepLift(allow_unruled=True), TARGETS)
    assert attribution.notes == ("operator 'logcumsumexp' in layer '1' has no rule; its plain gradient was taken",)
    assert attribution.checks["completeness_gap"].min() > 1e-3


class Unruled(nn.Module):
    def forward(self, x):
        return x.logcumsumexp(1)
