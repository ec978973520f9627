from __future__ import annotations

import pytest
import torch
from helpers import assert_close
from nets import classifier_of, conv_net, random_input
from torch import nn

from xai_cli import attribute
from xai_cli.engine.plain_pass import plain_pass
from xai_cli.methods.contract import Needs
from xai_cli.methods.extremal_perturbation import Discs, ExtremalPerturbation
from xai_cli.targets import Target

TARGETS = [Target(1), Target(2)]


def explained(net, inputs, *, targets=TARGETS, chunk=8, size=8, **options):
    passed = plain_pass(classifier_of(net, size=size), inputs, Needs(logits=True))
    return ExtremalPerturbation(**options).attribute(passed.evidence(targets, chunk=chunk))


def shown(regions):
    """A linear net of 32 x 32 pixels that scores class k by the sum of the pixels in `regions[k]`, and of noise."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3, bias=False))
    weights = 0.1 * torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for index, region in regions.items():
        weights[index, :, *region] += 1
    net[1].weight.data = weights.flatten(1)
    return net


LEFT, RIGHT = (slice(2, 16), slice(1, 15)), (slice(17, 31), slice(17, 31))
WHITE = torch.ones(2, 3, 32, 32, dtype=torch.float64)


@pytest.mark.parametrize("divided_by", [1, 1000])
def test_of_a_linear_model_covers_the_region_that_scores_whatever_the_scale_of_the_score(divided_by):
    net = shown({1: LEFT, 2: RIGHT})
    net[1].weight.data /= divided_by
    found = explained(net, WHITE, size=32, fill="mean", areas=[0.1])
    for mask, region in zip(found.relevance, (LEFT, RIGHT), strict=True):
        assert mask[region].sum() / mask.sum() >= 0.9
    assert not found.signed
    assert found.relevance.amin() >= 0
    assert found.relevance.amax() <= 1


def test_has_the_area_asked_for_and_keeps_the_more_of_the_score_the_larger_it_is():
    net, kept = shown({1: LEFT, 2: RIGHT}), []
    for area in (0.1, 0.2, 0.4):
        found = explained(net, WHITE, size=32, fill="mean", areas=[area])
        reached = found.relevance.mean(dim=(1, 2))
        assert_close(reached, torch.full((2,), area), rtol=0.1, atol=0)
        assert_close(found.checks["area_gap"], (reached - area).abs() / area, rtol=1e-6, atol=1e-6)
        logits = net(WHITE * found.relevance[:, None])
        whole = net(WHITE)
        expected = torch.stack([logits[row, each.index] / whole[row, each.index] for row, each in enumerate(TARGETS)])
        assert_close(found.checks["score_kept"], expected, rtol=1e-6, atol=1e-9)
        assert (found.checks["last_gain"] < 0.05).all()
        kept.append(expected)
    assert (torch.stack(kept).diff(dim=0) > 0).all()


def test_is_in_one_piece_and_smooth_where_pixels_alone_would_be_noise():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3, bias=False))
    net[1].weight.data = torch.randn(3, 3 * 32 * 32, generator=torch.Generator().manual_seed(3)).abs()
    mask = explained(net, WHITE, size=32, fill="mean", areas=[0.2]).relevance[0]
    share = net[1].weight[1].reshape(3, 32, 32).sum(dim=0)
    noise = (share > share.quantile(0.8)).double()
    variation = [each.diff(dim=0).abs().sum() + each.diff(dim=1).abs().sum() for each in (mask, noise)]
    assert variation[0] < 0.3 * variation[1]


@pytest.mark.parametrize("side", [(16, 16), (12, 20)])
def test_masks_are_the_smooth_maximum_over_discs(side):
    discs = Discs.of(torch.zeros(1, 3, *side, dtype=torch.float64), 0.25)
    radius, (down, across) = max(side) / 4, discs.shape
    parameters = torch.rand(1, down * across, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values, masks = discs.masks(parameters)
    centre = [
        ((n // across + 0.5) * side[0] / down, (n % across + 0.5) * side[1] / across) for n in range(down * across)
    ]
    for u, at in enumerate(centre):
        above = below = 0
        for v, other in enumerate(centre):
            z = ((at[0] - other[0]) ** 2 + (at[1] - other[1]) ** 2) ** 0.5 / radius
            s = torch.tensor(-2 * max(0, z - 0.5) ** 2).exp() * parameters[0, v]
            above, below = above + s * (20 * s).exp(), below + (20 * s).exp()
        assert_close(values[0, u], above / below, rtol=1e-6, atol=1e-9)
    assert masks.shape == (1, 1, *side)
    assert_close(discs.masks(torch.ones_like(parameters))[0], torch.ones_like(values), rtol=0, atol=0.1)


@pytest.mark.parametrize("radius", [0.1, 0.25])
def test_the_first_step_is_a_tenth_of_the_way_by_a_tenth_of_the_slope_however_many_places_there_are(radius):
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3, bias=False))
    net[1].weight.data.fill_(1)
    found = explained(net, WHITE[:1], targets=[Target(1)], size=32, fill="mean", steps=1, radius=radius)
    discs = Discs.of(WHITE, radius)
    start, slope = WHITE.new_full((1, len(discs.kernel)), 0.75), 0.01
    before, after = (discs.masks(start + more)[1].mean() for more in (0, slope))
    # The score is the mean of the mask, and a mean that rises by s per parameter, all together, moves them by s.
    steepness = (after - before) / slope
    assert_close(found.relevance.mean() - before, 0.1 * 0.1 * steepness**2, rtol=0.1, atol=0)


def test_several_areas_are_averaged_and_the_score_is_of_the_largest():
    net, inputs, options = conv_net(), random_input(), {"radius": 0.2, "steps": 10}
    both = explained(net, inputs, areas=[0.4, 0.1], **options)
    large, small = (explained(net, inputs, areas=[area], **options) for area in (0.4, 0.1))
    assert_close(both.relevance, (large.relevance + small.relevance) / 2, rtol=1e-9, atol=1e-12)
    assert_close(both.checks["score_kept"], large.checks["score_kept"], rtol=1e-9, atol=0)
    for name in ("area_gap", "last_gain"):
        expected = torch.maximum(large.checks[name], small.checks[name])
        assert_close(both.checks[name], expected, rtol=1e-9, atol=1e-12)


def test_costs_one_pass_per_step_and_one_before_and_after():
    net, passes = conv_net(), []
    net.register_forward_pre_hook(lambda _, arguments: passes.append(len(arguments[0])))
    attribute(classifier_of(net), random_input(), ExtremalPerturbation(steps=5, areas=[0.1, 0.2]), TARGETS, chunk=3)
    # The picture, its fill, and the four pairs of picture and area in two chunks of three.
    assert passes == [2, 2] + [3] * 12


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_is_the_same_whatever_the_size_of_passes_and_the_neighbours(chunk):
    net, inputs, options = conv_net(), random_input(), {"areas": [0.2, 0.5], "steps": 10, "radius": 0.2}
    ours = explained(net, inputs, chunk=chunk, **options).relevance
    assert_close(ours, explained(net, inputs, **options).relevance, rtol=1e-6, atol=1e-9)
    other = explained(net, torch.stack([inputs[0], 2 * inputs[0]]), chunk=chunk, **options).relevance
    assert torch.equal(ours[0], other[0])
    assert not torch.allclose(ours[1], other[1])


def test_of_two_classes_covers_what_speaks_for_the_one_and_not_for_the_other():
    net = shown({0: LEFT, 1: LEFT, 2: RIGHT})
    net[1].weight.data[1] += shown({1: RIGHT})[1].weight.data[1] / 2
    alone, against = (
        explained(net, WHITE[:1], targets=[target], size=32, fill="mean", areas=[0.1]).relevance[0]
        for target in (Target(1), Target(1, against=0))
    )
    assert alone[LEFT].sum() > 0.9 * alone.sum()
    assert against[RIGHT].sum() > 0.9 * against.sum()


@pytest.mark.parametrize("fill", ["mean", "blur"])
def test_of_a_picture_that_is_its_fill_shows_nothing(fill):
    inputs = random_input()
    inputs[0] = 0
    found = explained(conv_net(), inputs, fill=fill, steps=5)
    assert found.relevance[0].abs().max() == 0
    assert found.relevance[1].amax() > 0
    assert found.relevance.isfinite().all()
    assert found.checks["score_kept"][0] == 1
    assert found.checks["last_gain"][0] == 0
    assert all(values.isfinite().all() for values in found.checks.values())


def test_of_a_score_that_changes_by_rounding_alone_shows_nothing():
    net, inputs = shown({1: LEFT, 2: RIGHT}), WHITE.clone()
    net[1].weight.data[0] *= 1e-9
    net[1].bias = nn.Parameter(torch.full((3,), 100.0))
    for target, anything in ((Target(0), False), (Target(1), True), (Target(1, against=1), False)):
        found = explained(net, inputs[:1], targets=[target], size=32, fill="mean", steps=3)
        assert bool(found.relevance.any()) == anything
        assert anything or found.checks["score_kept"] == 1
        assert found.checks["last_gain"].isfinite().all()


def test_of_a_picture_that_is_its_fill_shows_nothing_though_passes_of_other_sizes_round_otherwise():
    class Coarse(nn.Module):
        def forward(self, x):
            return x.flatten(1).sum(dim=1, keepdim=True) + torch.tensor([1, 2, 3]) * (1 + 1e-3 * len(x))

    assert not explained(Coarse(), 0 * random_input(), chunk=1, fill="mean", steps=3).relevance.any()


@pytest.mark.parametrize("area", [0, 1, -0.1])
def test_refuses_areas_that_are_none_or_all(area):
    with pytest.raises(ValueError, match=r"--areas expects 0.005 to 0.995, found"):
        ExtremalPerturbation(areas=[0.1, area])
    with pytest.raises(ValueError, match="--areas expects at least one share of the picture, found none"):
        ExtremalPerturbation(areas=[])
