from __future__ import annotations

import captum.attr
import pytest
import torch
from helpers import assert_close
from nets import Quadratic, classifier_of, conv_net, linear_net, random_input

from xai_cli import attribute
from xai_cli.engine.plain_pass import plain_pass
from xai_cli.methods.contract import Needs
from xai_cli.methods.saliency import Saliency
from xai_cli.methods.smoothgrad import SmoothGrad
from xai_cli.targets import Target

TARGETS = [Target(1), Target(2)]
KINDS = {"smoothgrad": "smoothgrad", "squared": "smoothgrad_sq", "vargrad": "vargrad"}


def explained(net, inputs, *, chunk=8, keys=("a", "b"), seed=0, **options):
    passed = plain_pass(classifier_of(net), inputs, Needs(logits=True))
    return SmoothGrad(**options).attribute(passed.evidence(TARGETS, chunk=chunk, keys=keys, seed=seed))


def drawn(inputs, samples):
    """The noise `(B, S, C, h, w)` of each picture and sample, of standard deviation 1."""
    passed = plain_pass(classifier_of(linear_net()), inputs, Needs())
    begin = passed.evidence(TARGETS, chunk=1, keys=("a", "b")).generator
    pairs = [(row, sample) for row in range(2) for sample in range(samples)]
    noise = [torch.randn(3, 8, 8, generator=begin(*pair), dtype=inputs.dtype) for pair in pairs]
    return torch.stack(noise).unflatten(0, (2, samples))


@pytest.mark.parametrize("reduce", ["max", "sum"])
@pytest.mark.parametrize("kind", KINDS)
def test_is_what_the_papers_define(kind, reduce):
    net, inputs, samples = conv_net().double(), random_input(), 7
    expected = []
    for row, picture in enumerate(inputs):
        gradients = []
        for noise in drawn(inputs, samples)[row]:
            point = (picture + 0.3 * (picture.max() - picture.min()) * noise)[None].requires_grad_()
            gradients.append(torch.autograd.grad(net(point)[0, TARGETS[row].index], point)[0][0])
        mean = sum(gradients) / samples
        squared = sum(gradient**2 for gradient in gradients) / samples
        variance = sum((gradient - mean) ** 2 for gradient in gradients) / samples
        shown = {"smoothgrad": mean, "squared": squared, "vargrad": variance}[kind]
        expected.append(shown.abs().amax(dim=0) if reduce == "max" else shown.sum(dim=0))
    ours = explained(net, inputs, samples=samples, noise=0.3, kind=kind, reduce=reduce)
    assert_close(ours.relevance, torch.stack(expected), rtol=1e-9, atol=1e-15)
    assert ours.signed == (kind == "smoothgrad" and reduce == "sum")


@pytest.mark.parametrize("kind", KINDS)
def test_equals_captum_given_the_same_noise(kind, monkeypatch):
    net, inputs, samples = conv_net().double(), random_input(), 10
    reach = 0.1 * (inputs.amax(dim=(1, 2, 3)) - inputs.amin(dim=(1, 2, 3)))
    noise = (reach[:, None, None, None, None] * drawn(inputs, samples)).flatten(0, 1)
    monkeypatch.setattr(torch, "normal", lambda mean, deviation: noise)
    theirs = captum.attr.NoiseTunnel(captum.attr.Saliency(net)).attribute(
        inputs, nt_type=KINDS[kind], nt_samples=samples, target=torch.tensor([1, 2]), abs=False
    )
    ours = explained(net, inputs, samples=samples, kind=kind)
    assert_close(ours.relevance, theirs.abs().amax(dim=1), rtol=1e-5, atol=1e-9)


def test_without_noise_is_the_gradient():
    net, inputs = conv_net(), random_input()
    saliency = attribute(classifier_of(net), inputs, Saliency(), TARGETS).relevance
    attribution = explained(net, inputs, noise=0)
    assert_close(attribution.relevance, saliency, rtol=1e-9, atol=0)
    assert_close(attribution.checks["spread"], torch.zeros(2), rtol=0, atol=1e-12)
    assert_close(explained(net, inputs, noise=0, kind="squared").relevance, saliency**2, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_a_linear_model_is_its_weights_whatever_the_noise_and_the_variance_is_nothing(dtype):
    net, inputs = linear_net().to(dtype), random_input(dtype=dtype)
    classifier = classifier_of(net, dtype=dtype)
    weights = net[1].weight[[1, 2]].reshape(2, 3, 8, 8).abs().amax(dim=1)
    maps = {kind: attribute(classifier, inputs, SmoothGrad(noise=2, kind=kind), TARGETS).relevance for kind in KINDS}
    close = {"rtol": 10 * torch.finfo(dtype).eps, "atol": 0}
    assert_close(maps["smoothgrad"], weights, **close)
    assert_close(maps["squared"], weights**2, **close)
    # Squares less the square of the mean would leave the rounding of the squares, eps.
    assert (maps["vargrad"] <= torch.finfo(dtype).eps ** 2 * 100 * weights**2).all()


def test_of_a_quadratic_model_has_the_mean_and_variance_that_the_noise_gives_it():
    net, inputs, samples = Quadratic(), random_input(), 400
    weights = net.linear.weight[[1, 2]].reshape(2, 3, 8, 8)
    deviation = 0.1 * (inputs.amax(dim=(1, 2, 3)) - inputs.amin(dim=(1, 2, 3)))[:, None, None]
    mean = explained(net, inputs, samples=samples, reduce="sum")
    variance = explained(net, inputs, samples=samples, kind="vargrad", reduce="sum").relevance
    # The gradient 2 a x of a x^2 has the noise of x times 2 a, which does not depend on x.
    expected = ((2 * weights) ** 2).sum(dim=1) * deviation**2
    error = (expected / samples).sqrt()
    assert ((mean.relevance - (2 * weights * inputs).sum(dim=1)).abs() < 5 * error).all()
    assert_close(variance, expected, rtol=0.5, atol=0)
    assert_close(variance.sum(dim=(1, 2)), expected.sum(dim=(1, 2)), rtol=0.05, atol=0)


def test_spread_is_the_standard_error_and_tells_how_far_another_seed_leads():
    net, inputs, samples = Quadratic(), random_input(), 16
    net.linear.weight.data[:, 64:] = 0  # one colour channel, so that the sum over channels takes nothing away
    weights = net.linear.weight[[1, 2]].reshape(2, 3, 8, 8)
    deviation = 0.1 * (inputs.amax(dim=(1, 2, 3)) - inputs.amin(dim=(1, 2, 3)))
    error = deviation * (2 * weights).flatten(1).norm(dim=1) / samples**0.5
    spread = explained(net, inputs, samples=samples).checks["spread"]
    assert_close(spread, error / (2 * weights * inputs).flatten(1).norm(dim=1), rtol=0.1, atol=0)
    mean, other = (explained(net, inputs, samples=samples, seed=seed, reduce="sum").relevance for seed in (0, 1))
    variance = explained(net, inputs, samples=samples, kind="vargrad", reduce="sum").relevance
    measured = (variance.sum(dim=(1, 2)) / (samples - 1)).sqrt() / mean.flatten(1).norm(dim=1)
    assert_close(spread, measured, rtol=1e-9, atol=0)
    apart = (mean - other).flatten(1).norm(dim=1) / mean.flatten(1).norm(dim=1)
    assert_close(apart / 2**0.5, spread, rtol=0.25, atol=0)
    alike = torch.nn.functional.cosine_similarity(mean.flatten(1), other.flatten(1))
    assert_close(1 - alike, spread**2, rtol=0.5, atol=0)


def test_class_changed_is_the_share_of_copies_that_the_model_takes_for_something_else():
    net, inputs, samples = conv_net().double(), random_input(), 20
    reach = inputs.amax(dim=(1, 2, 3)) - inputs.amin(dim=(1, 2, 3))
    copies = inputs[:, None] + 2 * reach[:, None, None, None, None] * drawn(inputs, samples)
    classes = net(copies.flatten(0, 1)).argmax(dim=1).reshape(2, samples)
    expected = (classes != net(inputs).argmax(dim=1, keepdim=True)).double().mean(dim=1)
    assert ((expected > 0) & (expected < 1)).all()
    for chunk in (1, 3, 8):
        attribution = explained(net, inputs, samples=samples, noise=2, chunk=chunk, kind="vargrad")
        assert_close(attribution.checks["class_changed"], expected, rtol=1e-6, atol=0)
    assert explained(net, inputs, noise=0).checks["class_changed"].tolist() == [0, 0]


def test_costs_no_pass_but_those_of_its_copies():
    sizes, net = [], conv_net()
    net.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    attribution = attribute(classifier_of(net), random_input(), SmoothGrad(samples=7), TARGETS, chunk=4)
    assert sizes == [4] * 4
    assert attribution.checks.keys() == {"spread"}


def test_has_noise_of_each_picture_its_own_and_of_each_seed_another():
    net, inputs = conv_net(), random_input(1).expand(2, -1, -1, -1)
    target = [Target(1)] * 2
    evidence = plain_pass(classifier_of(net), inputs, Needs(logits=True)).evidence(target, chunk=8, keys=("a", "b"))
    twins = SmoothGrad(samples=3).attribute(evidence).relevance
    assert not torch.allclose(twins[0], twins[1])
    other = explained(net, inputs, keys=("b", "a"), samples=3).relevance
    assert torch.equal(other[1], explained(net, inputs, keys=("c", "a"), samples=3).relevance[1])
    assert not torch.allclose(other, explained(net, inputs, keys=("b", "a"), samples=3, seed=1).relevance)


def test_reaches_as_far_as_the_picture_of_each_row_does():
    net, inputs = conv_net(), random_input()
    scaled = torch.cat([inputs[:1], 100 * inputs[1:]])
    spread = explained(Quadratic(), inputs).checks["spread"]
    # With noise that grows with the picture, the gradient 2 a x is as uncertain as before.
    assert_close(explained(Quadratic(), scaled).checks["spread"], spread, rtol=1e-9, atol=0)
    flat = torch.ones_like(inputs)
    assert_close(
        explained(net, flat).relevance, attribute(classifier_of(net), flat, Saliency(), TARGETS).relevance,
        rtol=1e-9, atol=0,
    )  # fmt: skip


def test_of_a_score_that_no_pixel_moves_has_no_spread():
    net = linear_net()
    net[1].weight.data.zero_()
    attribution = explained(net, random_input())
    assert attribution.relevance.abs().max() == 0
    assert attribution.checks["spread"].tolist() == [0, 0]


def test_one_copy_is_no_mean():
    with pytest.raises(ValueError, match="--samples expects at least 2, found 1"):
        SmoothGrad(samples=1)
