from __future__ import annotations

import captum.attr
import pytest
import torch
from games import game_of, quarters, shapley
from helpers import assert_close
from nets import classifier_of, conv_net, linear_net, random_input

from xai_cli import attribute
from xai_cli.images.sources import seed_of
from xai_cli.methods.kernel_shap import KernelShap
from xai_cli.methods.shapley_sampling import ShapleySampling
from xai_cli.targets import Target

QUARTERS = {"segmentation": "grid", "segments": 4, "fill": "mean"}
NINE = {**QUARTERS, "segments": 9}


def values(classifier, inputs, target=1, *, kind=ShapleySampling, chunk=64, seed=0, **options):
    """The values `(P,)` of the only picture, their errors and the checks."""
    made = attribute(classifier, inputs, kind(**options), [Target(target)], chunk=chunk, seed=seed)
    segments = made.segments[0]
    checks = {name: float(each) for name, each in made.checks.items()}
    return *(torch.tensor(segments[name], dtype=torch.float64) for name in ("value", "error")), checks


@pytest.mark.parametrize("permutations", [12, 1000])
@pytest.mark.parametrize("target", range(3))
def test_all_orders_give_the_shapley_values_for_sure(target, permutations):
    classifier, inputs = classifier_of(conv_net()), random_input(1)
    found, errors, checks = values(classifier, inputs, target, permutations=permutations, **QUARTERS)
    exact = shapley(game_of(classifier, inputs[0], torch.zeros(()), quarters()), 4)[target]
    assert_close(found, exact, rtol=1e-9, atol=1e-12)
    assert not errors.any()
    assert checks == {"single_segment": 0, "evaluations": 12 * 2 * 3 + 2, "spread": 0}
    by_captum = captum.attr.ShapleyValues(classifier.logits)
    captums = by_captum.attribute(inputs, target=target, feature_mask=quarters()[None])
    assert_close(found, captums[0, 0, ::4, ::4].flatten(), rtol=1e-6, atol=0)


def test_of_more_segments_comes_near_all_sets_as_its_errors_say():
    classifier, inputs = classifier_of(conv_net()), random_input(1)
    found, errors, checks = values(classifier, inputs, permutations=200, chunk=500, **NINE)
    exact, _, _ = values(classifier, inputs, kind=KernelShap, samples=510, **NINE)
    assert errors.max() < 0.05 * exact.abs().max()
    assert 0.3 < ((found - exact) / errors).square().mean().sqrt() < 2
    assert checks["evaluations"] == 200 * 2 * 8 + 2
    for permutations in (2, 3):
        few, _, _ = values(classifier, inputs, permutations=permutations, **NINE)
        assert float(few.sum()) == pytest.approx(float(exact.sum()), rel=1e-12)


def test_walks_are_an_order_and_its_reverse():
    classifier, inputs = classifier_of(conv_net()), random_input(1)
    thirds = torch.arange(8) * 3 // 8
    game = game_of(classifier, inputs[0], torch.zeros(()), 3 * thirds[:, None] + thirds)
    numbers = torch.rand(2, 9, generator=torch.Generator().manual_seed(seed_of("")), dtype=torch.float64)
    expected = torch.zeros(9, dtype=torch.float64)
    for order in numbers.argsort(dim=1).tolist():
        for walk in (order, order[::-1]):
            for place, segment in enumerate(walk):
                expected[segment] += (game(walk[: place + 1]) - game(walk[:place]))[1] / 4
    assert_close(values(classifier, inputs, permutations=2, **NINE)[0], expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("segments", "permutations"), [(4, 2), (4, 11), (6, 20)])
def test_of_few_segments_no_order_is_drawn_again(segments, permutations):
    classifier, inputs = classifier_of(conv_net()), random_input(1)
    options, seen = {**QUARTERS, "segments": segments}, set()
    exact, _, _ = values(classifier, inputs, kind=KernelShap, **options)
    told, gone = torch.zeros(()), torch.zeros(())
    for seed in range(40):
        found, errors, _ = values(classifier, inputs, permutations=permutations, seed=seed, **options)
        told, gone = told + errors.square().sum(), gone + (found - exact).square().sum()
        seen.add(tuple(found.tolist()))
    assert 0.7 < (told / gone).sqrt() < 1.4
    assert len(seen) > 10


def test_two_segments_need_no_more_than_one_order_and_its_reverse():
    classifier, inputs = classifier_of(conv_net()), random_input(1)
    labels = (torch.arange(8)[:, None] >= 4).long().expand(8, 8)
    made = attribute(classifier, inputs.mT, ShapleySampling(**QUARTERS | {"segments": 2}), [Target(0)])
    found = torch.tensor(made.segments[0]["value"], dtype=torch.float64)
    labels = labels if made.relevance[0, 0, 0] == made.relevance[0, 0, 7] else labels.T
    exact = shapley(game_of(classifier, inputs[0].mT, torch.zeros(()), labels), 2)[0]
    assert_close(found, exact, rtol=1e-9, atol=1e-12)
    assert float(made.checks["spread"]) < 1e-12


def test_a_linear_model_has_its_weights_in_every_walk():
    classifier, inputs = classifier_of(linear_net()), random_input(1)
    found, errors, checks = values(classifier, inputs, permutations=2, **QUARTERS)
    products = (classifier.module[1].weight[1].view(1, 3, 8, 8) * inputs).sum(dim=1)
    assert_close(
        found, products.unflatten(2, (2, 4)).unflatten(1, (2, 4)).sum(dim=(2, 4)).flatten(), rtol=1e-10, atol=0
    )
    assert errors.max() < 1e-12
    assert checks["spread"] < 1e-12


@pytest.mark.parametrize(
    ("segments", "permutations", "tolerance"), [(9, 4, 0), (9, 20, 0), (9, 100, 0.1), (16, 100, 0.1)]
)
def test_the_errors_are_those_of_seeds_where_it_stops_as_well(segments, permutations, tolerance):
    classifier, inputs = classifier_of(conv_net()), random_input(1)
    options = {**NINE, "segments": segments, "permutations": permutations, "tolerance": tolerance, "chunk": 500}
    found, errors, _ = zip(*(values(classifier, inputs, seed=seed, **options) for seed in range(30)), strict=True)
    ratio = torch.stack(errors).square().mean().sqrt() / torch.stack(found).var(dim=0).mean().sqrt()
    assert 0.7 < ratio < 1.4


@pytest.mark.parametrize("segments", [6, 9])
def test_a_tolerance_stops_early_with_what_so_many_walks_give(segments):
    classifier, inputs = classifier_of(conv_net()), random_input(1)
    options = {**QUARTERS, "segments": segments}
    every, _, whole = values(classifier, inputs, permutations=50, **options)
    found, errors, checks = values(classifier, inputs, permutations=50, tolerance=2 * whole["spread"], **options)
    assert checks["spread"] <= 2 * whole["spread"]
    pairs, rest = divmod(int(checks["evaluations"]) - 2, 2 * (segments - 1))
    assert rest == 0
    assert 4 <= pairs < 50
    again = values(classifier, inputs, permutations=pairs, **options)
    assert torch.equal(found, again[0])
    assert torch.equal(errors, again[1])
    assert not torch.equal(found, every)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("segments", [4, 9])
def test_a_model_in_half_precision_has_nearly_the_same_values(dtype, segments):
    inputs, options = random_input(1, dtype=torch.float32), {**QUARTERS, "segments": segments}
    exact, _, _ = values(classifier_of(conv_net(), dtype=torch.float32), inputs, **options)
    found, errors, _ = values(classifier_of(conv_net(), dtype=dtype), inputs, **options)
    assert errors.isfinite().all()
    assert_close(found, exact, rtol=0, atol=0.1 * float(exact.abs().max()))
