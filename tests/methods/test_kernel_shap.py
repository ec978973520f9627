from __future__ import annotations

import captum.attr
import pytest
import torch
from games import game_of, quarters, shapley
from helpers import assert_close
from nets import classifier_of, conv_net, linear_net, random_input
from torch import nn

from xai_cli import attribute
from xai_cli.methods.kernel_shap import Design, KernelShap, all_pairs, drawn_pairs
from xai_cli.targets import Target

QUARTERS = {"segmentation": "grid", "segments": 4, "fill": "mean"}
SIXTEEN = {"segmentation": "grid", "segments": 16, "fill": "mean"}


def values(classifier, inputs, target=1, *, chunk=64, seed=0, **options):
    """The values `(P,)` of the only picture, their errors and the checks."""
    made = attribute(classifier, inputs, KernelShap(**options), [Target(target)], chunk=chunk, seed=seed)
    segments = made.segments[0]
    checks = {name: float(each) for name, each in made.checks.items()}
    return *(torch.tensor(segments[name], dtype=torch.float64) for name in ("value", "error")), checks


class Products(nn.Module):
    """Games of four quarters, by their means: the last plays in none, the first two play alike."""

    def forward(self, x):
        a, b, c, _ = (x[:, :, i : i + 4, j : j + 4].mean(dim=(1, 2, 3)) for i in (0, 4) for j in (0, 4))
        return torch.stack([a * b, (a + b) * c, a * b - 2 * (a + b) * c], dim=1)


@pytest.mark.parametrize("target", range(3))
def test_all_sets_give_the_shapley_values(target):
    classifier, inputs = classifier_of(conv_net()), random_input(1)
    found, errors, checks = values(classifier, inputs, target, **QUARTERS)
    expected = shapley(game_of(classifier, inputs[0], torch.zeros(()), quarters()), 4)[target]
    assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert not errors.any()
    assert checks == {"single_segment": 0, "evaluations": 2**4, "spread": 0}


def test_values_keep_the_axioms():
    inputs = random_input(1) + torch.tensor([1.0, 2.0]).repeat_interleave(4)[:, None]
    inputs[..., :4, 4:] = inputs[..., :4, :4]
    product, other, mixed = (values(classifier_of(Products()), inputs, target, **QUARTERS)[0] for target in range(3))
    a, c = (float(inputs[..., rows, :4].mean()) for rows in (slice(4), slice(4, 8)))
    assert_close(product, [a * a / 2, a * a / 2, 0, 0], rtol=1e-10, atol=1e-10)
    assert_close(other, [a * c / 2, a * c / 2, a * c, 0], rtol=1e-10, atol=1e-10)
    assert_close(mixed, product - 2 * other, rtol=1e-10, atol=1e-10)


def test_all_sets_agree_with_captum():
    classifier, inputs = classifier_of(conv_net()), random_input(1)
    found, _, _ = values(classifier, inputs, **QUARTERS)
    exact = captum.attr.ShapleyValues(classifier.logits).attribute(inputs, target=1, feature_mask=quarters()[None])
    assert_close(found, exact[0, 0, ::4, ::4].flatten(), rtol=1e-6, atol=0)
    torch.manual_seed(0)
    captums = captum.attr.KernelShap(classifier.logits)
    drawn = captums.attribute(inputs, target=1, feature_mask=quarters()[None], n_samples=600, perturbations_per_eval=50)
    assert_close(found, drawn[0, 0, ::4, ::4].flatten(), rtol=0, atol=0.1 * float(found.abs().max()))


def test_drawn_sets_come_near_the_shapley_values_as_their_errors_say():
    classifier, inputs = classifier_of(conv_net()), random_input(1)
    options = {**SIXTEEN, "segments": 9}
    exact, errors, checks = values(classifier, inputs, samples=510, **options)
    assert not errors.any()
    assert checks["evaluations"] == 512
    for samples in (100, 509):
        found, errors, checks = values(classifier, inputs, samples=samples, **options)
        assert checks["evaluations"] == samples // 2 * 2 + 2
        assert 0.2 < ((found - exact) / errors).square().mean().sqrt() < 2.5
        assert float(found.sum()) == pytest.approx(float(exact.sum()), rel=1e-12)  # the score's change, exactly


@pytest.mark.parametrize(
    ("segments", "samples", "tolerance"),
    [(16, 60, 0), (16, 100, 0), (16, 400, 0), (16, 500, 0.2), (49, 1000, 0.4)],
)
def test_the_errors_are_those_of_seeds_where_it_stops_as_well(segments, samples, tolerance):
    classifier, inputs = classifier_of(conv_net()), random_input(1)
    options = {**SIXTEEN, "segments": segments, "samples": samples, "tolerance": tolerance, "chunk": 500}
    found, errors, _ = zip(*(values(classifier, inputs, seed=seed, **options) for seed in range(30)), strict=True)
    ratio = torch.stack(errors).square().mean().sqrt() / torch.stack(found).var(dim=0).mean().sqrt()
    assert 0.7 < ratio < 1.4


@pytest.mark.parametrize("samples", [2, 7, 31, 32, 60, 1000])
def test_a_linear_model_has_its_weights_as_soon_as_there_are_samples_enough(samples):
    classifier, inputs = classifier_of(linear_net()), random_input(1)
    found, errors, _ = values(classifier, inputs, samples=samples, **SIXTEEN)
    products = classifier.module[1].weight[1].view(1, 3, 8, 8) * inputs
    cells = products.sum(dim=1).unflatten(2, (4, 2)).unflatten(1, (4, 2)).sum(dim=(2, 4)).flatten()
    assert found.isfinite().all()
    assert_close(found.sum(), cells.sum(), rtol=1e-12, atol=0)
    if samples >= 60:
        assert_close(found, cells, rtol=1e-8, atol=1e-10)
        assert errors.max() < 1e-8
    if samples < 32:
        assert errors.isinf().all()


def test_fewer_samples_than_segments_share_equally_what_they_do_not_tell():
    found, _, checks = values(classifier_of(linear_net()), random_input(1), samples=2, **SIXTEEN)
    assert checks["spread"] == float("inf")
    assert len(found.mul(1e6).round().unique()) == 2  # the set and its complement


def test_a_tolerance_stops_early_with_what_so_many_samples_give():
    classifier, inputs = classifier_of(conv_net()), random_input(1)
    every, _, whole = values(classifier, inputs, **SIXTEEN)
    found, errors, checks = values(classifier, inputs, tolerance=2 * whole["spread"], **SIXTEEN)
    assert whole["spread"] < checks["spread"] <= 2 * whole["spread"]
    assert checks["evaluations"] < whole["evaluations"] == 1002
    again = values(classifier, inputs, samples=int(checks["evaluations"]) - 2, **SIXTEEN)
    assert torch.equal(found, again[0])
    assert torch.equal(errors, again[1])
    assert not torch.equal(found, every)


def test_all_sets_are_taken_together_whatever_the_tolerance():
    classifier, inputs = classifier_of(conv_net()), random_input(1)
    found, errors, checks = values(classifier, inputs, tolerance=10.0, **SIXTEEN | {"segments": 9})
    assert checks["evaluations"] == 512
    assert not errors.any()
    assert torch.equal(found, values(classifier, inputs, **SIXTEEN | {"segments": 9})[0])


def test_a_pair_that_is_drawn_again_says_nothing_of_the_error():
    signs = torch.tensor([[1.0, -1, -1, 1], [1, 1, -1, -1], [-1, -1, 1, 1], [1, -1, 1, 1]], dtype=torch.float64)
    scores = torch.tensor([[3.0], [1], [2], [5], [5], [2], [4], [0]])
    estimated = Design(signs, torch.ones(4, dtype=torch.float64), False).estimate(scores, torch.ones(1), torch.ones(4))
    assert estimated.errors.isinf().all()
    assert float(estimated.values.sum()) == pytest.approx(1)


def test_pairs_that_leave_two_segments_together_tell_no_errors():
    others = torch.cartesian_prod(*[torch.tensor([1.0, -1])] * 3)[1:].double()  # with neither all nor nothing
    signs = torch.cat([torch.ones(7, 2, dtype=torch.float64), others], dim=1)
    scores = torch.rand(14, 1, generator=torch.Generator().manual_seed(0))
    estimated = Design(signs, torch.ones(7, dtype=torch.float64), False).estimate(scores, torch.ones(1), torch.ones(5))
    assert estimated.errors.isinf().all()
    assert_close(estimated.values[0, 0], estimated.values[0, 1], rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("samples", [40, 1000])
def test_a_model_in_half_precision_has_nearly_the_same_values(dtype, samples):
    inputs, options = random_input(1, dtype=torch.float32), {**SIXTEEN, "segments": 8, "samples": samples}
    exact, _, _ = values(classifier_of(conv_net(), dtype=torch.float32), inputs, **options)
    found, errors, _ = values(classifier_of(conv_net(), dtype=dtype), inputs, **options)
    assert errors.isfinite().all()
    assert_close(found, exact, rtol=0, atol=0.1 * float(exact.abs().max()))


def test_sets_are_drawn_as_the_kernel_has_them_and_fewer_are_the_first_of_more():
    design = drawn_pairs(5, 4000, torch.Generator().manual_seed(0))
    sizes = (design.signs > 0).sum(dim=1).bincount(minlength=6) / 4000
    kernel = torch.tensor([0, 1 / 4, 1 / 6, 1 / 6, 1 / 4, 0])
    assert_close(sizes, kernel / kernel.sum(), rtol=0, atol=0.03)
    assert_close(design.signs.mean(dim=0), torch.zeros(5), rtol=0, atol=0.05)
    assert torch.equal(drawn_pairs(5, 7, torch.Generator().manual_seed(0)).signs, design.signs[:7])


@pytest.mark.parametrize("segments", [1, 2, 5])
def test_all_sets_are_there_once(segments):
    design = all_pairs(segments)
    assert len(design.present.unique(dim=0)) == len(design.present) == 2**segments - 2
    assert (design.present[::2] != design.present[1::2]).all()
