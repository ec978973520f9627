from __future__ import annotations

import captum.attr
import pytest
import torch
from games import game_of, quarters, shapley
from helpers import assert_close
from nets import classifier_of, conv_net, linear_net, random_input

from xai_cli import attribute
from xai_cli.methods.shapley_sampling import ShapleySampling
from xai_cli.targets import Target

QUARTERS = {"segmentation": "grid", "segments": 4, "fill": "mean"}


def values(classifier, inputs, target=1, *, chunk=64, seed=0, **options):
    """The values `(P,)` of the only picture, their errors and the checks."""
    made = attribute(classifier, inputs, ShapleySampling(**options), [Target(target)], chunk=chunk, seed=seed)
    segments = made.segments[0]
    checks = {name: float(each) for name, each in made.checks.items()}
    return *(torch.tensor(segments[name], dtype=torch.float64) for name in ("value", "spread")), checks


@pytest.mark.parametrize("target", range(3))
def test_values_come_near_the_shapley_values_as_their_errors_say(target):
    classifier, inputs = classifier_of(conv_net()), random_input(1)
    game = game_of(classifier, inputs[0], torch.zeros(()), quarters())
    exact = shapley(game, 4)[target]
    found, errors, checks = values(classifier, inputs, target, permutations=200, chunk=500, **QUARTERS)
    assert errors.max() < 0.03 * exact.abs().max()
    assert ((found - exact) / errors).abs().max() < 3.5
    assert checks["evaluations"] == 200 * 2 * 3 + 2
    for permutations in (2, 3):
        few, _, _ = values(classifier, inputs, target, permutations=permutations, **QUARTERS)
        assert_close(few.sum(), (game(range(4)) - game([]))[target], rtol=1e-12, atol=1e-14)


def test_the_first_pair_of_walks_is_an_order_and_its_reverse():
    classifier, inputs = classifier_of(conv_net()), random_input(1)
    game = game_of(classifier, inputs[0], torch.zeros(()), quarters())
    numbers = torch.rand(2, 4, generator=torch.Generator().manual_seed(seed_of_nothing()), dtype=torch.float64)
    expected = torch.zeros(4, dtype=torch.float64)
    for order in numbers.argsort(dim=1).tolist():
        for walk in (order, order[::-1]):
            for place, segment in enumerate(walk):
                expected[segment] += (game(walk[: place + 1]) - game(walk[:place]))[1] / 4
    assert_close(values(classifier, inputs, permutations=2, **QUARTERS)[0], expected, rtol=1e-10, atol=1e-13)


def seed_of_nothing():
    from xai_cli.methods.contract import seed_of

    return seed_of("", 0)


def test_two_segments_need_no_more_than_one_order_and_its_reverse():
    classifier, inputs = classifier_of(conv_net()), random_input(1)
    labels = (torch.arange(8)[:, None] >= 4).long().expand(8, 8)
    made = attribute(classifier, inputs.mT, ShapleySampling(**QUARTERS | {"segments": 2}), [Target(0)])
    found = torch.tensor(made.segments[0]["value"], dtype=torch.float64)
    labels = labels if made.relevance[0, 0, 0] == made.relevance[0, 0, 7] else labels.T
    exact = shapley(game_of(classifier, inputs[0].mT, torch.zeros(()), labels), 2)[0]
    assert_close(found, exact, rtol=1e-9, atol=1e-12)
    assert float(made.checks["spread"]) < 1e-12


def test_values_agree_with_captum():
    classifier, inputs = classifier_of(conv_net()), random_input(1)
    found, errors, _ = values(classifier, inputs, permutations=100, chunk=500, **QUARTERS)
    exact = captum.attr.ShapleyValues(classifier.logits).attribute(inputs, target=1, feature_mask=quarters()[None])
    assert ((found - exact[0, 0, ::4, ::4].flatten()) / errors).abs().max() < 3.5


def test_a_linear_model_has_its_weights_in_every_walk():
    classifier, inputs = classifier_of(linear_net()), random_input(1)
    found, errors, checks = values(classifier, inputs, permutations=2, **QUARTERS)
    products = (classifier.module[1].weight[1].view(1, 3, 8, 8) * inputs).sum(dim=1)
    assert_close(
        found, products.unflatten(2, (2, 4)).unflatten(1, (2, 4)).sum(dim=(2, 4)).flatten(), rtol=1e-10, atol=0
    )
    assert errors.max() < 1e-12
    assert checks["spread"] < 1e-12


@pytest.mark.parametrize("permutations", [4, 20])
def test_the_spread_is_that_of_seeds(permutations):
    classifier, inputs = classifier_of(conv_net()), random_input(1)
    options = {**QUARTERS, "segments": 9, "permutations": permutations, "chunk": 500}
    found, errors, _ = zip(*(values(classifier, inputs, seed=seed, **options) for seed in range(30)), strict=True)
    ratio = torch.stack(errors).square().mean().sqrt() / torch.stack(found).var(dim=0).mean().sqrt()
    assert 0.7 < ratio < 1.4


def test_a_tolerance_stops_early_with_what_so_many_walks_give():
    classifier, inputs = classifier_of(conv_net()), random_input(1)
    options = {**QUARTERS, "segments": 9}
    every, _, whole = values(classifier, inputs, permutations=50, **options)
    found, errors, checks = values(classifier, inputs, permutations=50, tolerance=2 * whole["spread"], **options)
    assert checks["spread"] <= 2 * whole["spread"]
    pairs, rest = divmod(int(checks["evaluations"]) - 2, 2 * 8)
    assert rest == 0
    assert 2 <= pairs < 50
    again = values(classifier, inputs, permutations=pairs, **options)
    assert torch.equal(found, again[0])
    assert torch.equal(errors, again[1])
    assert not torch.equal(found, every)
