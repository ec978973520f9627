from __future__ import annotations

import pytest
import torch
from helpers import assert_close
from nets import classifier_of, conv_net, linear_net, random_input
from torch.nn.functional import interpolate

from xai_cli.engine.plain_pass import plain_pass
from xai_cli.methods.contract import Needs
from xai_cli.methods.rise import Rise
from xai_cli.targets import Target

TARGETS = [Target(1), Target(2)]
SAMPLINGS = ("orthogonal", "independent")
FEW = {"cells": 3, "samples": 64}  # four blocks of 16


def evidence_of(net, inputs, *, chunk=8, keys=("a", "b"), seed=0, ranks=(TARGETS,)):
    passed = plain_pass(classifier_of(net, size=inputs.shape[-1]), inputs, Needs(logits=True))
    return list(passed.evidences(ranks, chunk=chunk, keys=keys, seed=seed))


def explained(net, inputs, *, chunk=8, keys=("a", "b"), seed=0, **options):
    return Rise(**options).attribute(evidence_of(net, inputs, chunk=chunk, keys=keys, seed=seed)[0])


def masks_of(inputs, **options):
    """The masks `(B, N, h, w)` of a batch, and their tables."""
    method, (evidence,) = Rise(**options), evidence_of(linear_net(inputs.shape[-1]), inputs)
    masks = method.masks(evidence)
    count = masks.present.shape[1]
    rows = torch.arange(2).repeat_interleave(count)
    return masks.visible(rows, torch.arange(count).repeat(2)).unflatten(0, (2, count))[:, :, 0], masks


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("size", [8, 10])
def test_masks_are_grids_enlarged_by_a_cell_and_cut_out_at_their_shift(size, sampling):
    found, masks = masks_of(random_input(size=size), sampling=sampling, **FEW)
    cell = -(-size // 3)
    assert masks.shifts.amin() == 0
    assert masks.shifts.amax() == 4 * cell - size
    for grids, shifts, cut in zip(masks.present, masks.shifts, found, strict=True):
        for grid, (down, across), mask in zip(grids, shifts.tolist(), cut, strict=True):
            enlarged = interpolate(grid[None, None].double(), size=4 * cell, mode="bilinear", align_corners=False)[0, 0]
            assert_close(mask, enlarged[down : down + size, across : across + size], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("sampling", "keep"), [("orthogonal", 0.5), ("independent", 0.5), ("independent", 0.2)])
def test_masks_lie_in_0_to_1_with_the_mean_asked_for_and_vary_everywhere(sampling, keep):
    found, masks = masks_of(random_input(), sampling=sampling, keep=keep, cells=4, samples=3200)
    assert found.amin() >= 0
    assert found.amax() <= 1 + 1e-6
    assert ((found.mean(dim=1) - keep).abs() < 5 * (keep / 3200) ** 0.5).all()
    assert (found.var(dim=1) > 0.2 * keep * (1 - keep)).all()
    assert not torch.equal(*masks.present)


def test_orthogonal_masks_are_balanced_and_uncorrelated_in_each_block_of_one_shift():
    _, masks = masks_of(random_input(), cells=3, samples=64)
    blocks = masks.present.double().unflatten(1, (4, 16)).flatten(3)  # (B, blocks, 16, 9)
    assert_close(blocks.mean(dim=2), torch.full((2, 4, 9), 0.5), rtol=0, atol=0)
    products = (2 * blocks - 1).mT @ (2 * blocks - 1)
    assert_close(products, 16 * torch.eye(9).expand(2, 4, 9, 9), rtol=0, atol=0)
    assert masks.shifts.unflatten(1, (4, 16)).unique(dim=2).shape[2] == 1
    assert not torch.equal(blocks[:, 0], blocks[:, 1])


@pytest.mark.parametrize(("sampling", "keep"), [("orthogonal", 0.5), ("independent", 0.3)])
@pytest.mark.parametrize("score", ["logit", "probability"])
def test_with_the_mean_score_is_the_map_of_the_paper(sampling, keep, score):
    net, inputs, options = conv_net().double(), random_input(), {"sampling": sampling, "keep": keep, **FEW}
    found, _ = masks_of(inputs, **options)
    ours = explained(net, inputs, score=score, **options)
    for row, masks in enumerate(found):
        scores = []
        for mask in masks:
            logits = net((inputs[row] * mask)[None])[0]
            scores.append((logits if score == "logit" else logits.softmax(dim=0))[TARGETS[row].index])
        paper = sum(f * mask for f, mask in zip(scores, masks, strict=True)) / (len(masks) * keep)
        constant = torch.stack(scores).mean() * masks.mean(dim=0) / keep
        assert_close(ours.relevance[row] + constant, paper, rtol=1e-6, atol=1e-9)
        # Each block gives a map of its own, and the spread is that of their mean.
        scores = torch.stack(scores)
        parts = (scores - scores.mean())[:, None, None] * (masks - keep) / (16 * keep)
        parts = parts.unflatten(0, (4, 16)).sum(dim=1).flatten(1)
        spread = parts.std(dim=0).norm() / 4**0.5 / parts.mean(dim=0).norm()
        assert_close(ours.checks["spread"][row], spread, rtol=1e-5, atol=0)
    assert ours.signed


@pytest.mark.parametrize(("samples", "taken"), [(2, 32), (33, 48), (64, 64)])
def test_samples_are_rounded_up_to_whole_blocks_and_two(samples, taken):
    found = explained(conv_net(), random_input(), cells=3, samples=samples)
    assert found.checks["evaluations"].tolist() == [taken, taken]


def test_of_a_linear_model_is_its_share_of_each_pixel_by_how_masks_go_together():
    net, inputs = linear_net(), random_input()
    options = {"cells": 5, "samples": 8000, "chunk": 200}
    share = (net[1].weight[[1, 2]].reshape(2, 3, 8, 8) * inputs).sum(dim=1).flatten(1)
    # Of independent cells of variance 1/4: Cov(m_i, m_j) = sum over cells of their weights in i and in j, over 4.
    _, masks = masks_of(inputs, cells=5, samples=64)
    weights = torch.einsum("acy,bdx->abcdyx", masks.down, masks.across).flatten(4).flatten(2, 3).flatten(0, 1)
    covariance = (weights.mT @ weights).mean(dim=0) / 4
    ours = explained(net, inputs, **options)
    expected = (share @ covariance / 0.5).unflatten(1, (8, 8))
    assert_close((ours.relevance - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1), torch.zeros(2),
                 rtol=0, atol=0.05)  # fmt: skip


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(("samples", "tolerance"), [(256, 0), (1024, 0.4), (1024, 0.1)])
def test_spread_tells_how_far_the_maps_of_other_seeds_are_where_it_stops_as_well(sampling, samples, tolerance):
    net, inputs, options = conv_net(), random_input(), {"cells": 3, "sampling": sampling, "tolerance": tolerance}
    runs = [explained(net, inputs, seed=seed, samples=samples, chunk=64, **options) for seed in range(16)]
    maps = torch.stack([run.relevance for run in runs]).flatten(2)
    apart = maps.var(dim=0).sum(dim=1).sqrt() / maps.mean(dim=0).norm(dim=1)
    told = torch.stack([run.checks["spread"] for run in runs]).square().mean(dim=0).sqrt()
    assert ((told / apart > 0.7) & (told / apart < 1.4)).all()


def test_orthogonal_masks_leave_less_to_chance():
    net, inputs = conv_net(), random_input()
    spread = {each: explained(net, inputs, sampling=each, cells=3, samples=512).checks["spread"] for each in SAMPLINGS}
    assert (spread["orthogonal"] < 0.7 * spread["independent"]).all()


def test_stops_a_picture_whose_spread_is_small_enough():
    net, inputs = conv_net(), random_input()
    inputs[1] = 0  # nothing to hide, so no spread
    options = {"cells": 3, "samples": 512}
    full = explained(net, inputs, **options)
    found = explained(net, inputs, tolerance=2 * float(full.checks["spread"][0]), **options)
    first, second = found.checks["evaluations"].tolist()
    assert second == 64  # four blocks, the fewest whose spread is believed
    assert 64 < first < 512
    assert found.checks["spread"][0] <= 2 * full.checks["spread"][0]
    # The samples it had are the first of all.
    assert_close(found.relevance[0], explained(net, inputs, cells=3, samples=first).relevance[0], rtol=1e-9, atol=1e-12)


def test_fewer_masks_are_the_first_of_more_and_another_seed_or_key_draws_others():
    inputs = random_input()
    _, many = masks_of(inputs, cells=3, samples=64)
    _, few = masks_of(inputs, cells=3, samples=32)
    assert torch.equal(many.present[:, :32], few.present)
    assert torch.equal(many.shifts[:, :32], few.shifts)
    net = conv_net()
    plain = explained(net, inputs, **FEW).relevance
    assert torch.equal(plain, explained(net, inputs, **FEW).relevance)
    assert not torch.allclose(plain, explained(net, inputs, seed=1, **FEW).relevance)
    assert not torch.allclose(plain[0], explained(net, inputs, keys=("c", "b"), **FEW).relevance[0])


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_picture_equal_to_its_fill_has_a_map_of_zeros_and_no_spread(sampling):
    inputs = random_input()
    inputs[0] = 0
    found = explained(conv_net(), inputs, sampling=sampling, **FEW)
    assert found.relevance[0].abs().max() == 0
    assert found.checks["spread"][0] == 0
    assert found.relevance[1].abs().max() > 0


def test_all_targets_share_the_passes_and_equal_each_alone():
    net, inputs, passes = conv_net(), random_input(), []
    ranks = (TARGETS, [Target(0), Target(0)])
    first, second = evidence_of(net, inputs, ranks=ranks)
    hook = net.register_forward_pre_hook(lambda _, arguments: passes.append(len(arguments[0])))
    method = Rise(**FEW)
    # Both ranks of one batch.
    maps = [method.attribute(each) for each in (first, second)]
    hook.remove()
    assert passes == [8] * 16
    for ours, targets in zip(maps, ranks, strict=True):
        alone = method.attribute(evidence_of(net, inputs, ranks=(targets,))[0])
        assert_close(ours.relevance, alone.relevance, rtol=1e-9, atol=1e-15)
        assert_close(ours.checks["spread"], alone.checks["spread"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_is_the_same_whatever_the_size_of_passes(chunk):
    net, inputs = conv_net(), random_input()
    assert_close(
        explained(net, inputs, chunk=chunk, **FEW).relevance, explained(net, inputs, **FEW).relevance,
        rtol=1e-9, atol=1e-12,
    )  # fmt: skip


def test_refuses_what_cannot_be():
    with pytest.raises(ValueError, match=r"--sampling orthogonal expects --keep 0.5, found 0.3; add --sampling indep"):
        Rise(keep=0.3)
    with pytest.raises(ValueError, match="--cells expects at most the 8 pixels of the model's input, found 9"):
        Rise(cells=9).needs(classifier_of(linear_net()))
