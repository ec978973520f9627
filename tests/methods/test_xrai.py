from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import assert_close
from nets import classifier_of, linear_net, random_input, seeded
from scipy.ndimage import gaussian_filter
from skimage.morphology import dilation, disk
from torch import nn

from xai_cli import attribute
from xai_cli.images.segments import felzenszwalb
from xai_cli.methods.ig import IntegratedGradients
from xai_cli.methods.xrai import Xrai, ranked, regions
from xai_cli.targets import Target

SIDE = 64  # where a region grows by 1 pixel and brings at least 4 new ones


def smooth(*shape, sigma, seed=0):
    return gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma)


@pytest.fixture(scope="module")
def picture():
    """A picture of clouds `(64, 64, 3)`."""
    clouds = smooth(SIDE, SIDE, 3, sigma=(5, 5, 0))
    return (255 * (clouds - clouds.min()) / np.ptp(clouds)).astype(np.uint8)


def published(values, picture):
    """The map of the paper's algorithm, mask by mask."""
    masks = [
        dilation(labels == number, disk(1))
        for labels in felzenszwalb(picture, (50, 100, 150, 250, 500, 1200))
        for number in range(labels.max() + 1)
    ]
    found, taken, count = np.zeros(values.shape), np.zeros(values.shape, bool), 0
    while masks := [mask for mask in masks if (mask & ~taken).sum() >= 4]:
        new = max((mask & ~taken for mask in masks), key=lambda new: values[new].mean())
        found[new] = values[new].mean()
        taken |= new
        count += 1
    if not taken.all():
        found[~taken] = values[~taken].mean()
        count += 1
    return found, count


@pytest.mark.parametrize("sigma", [0, 2, 8])
def test_ranks_regions_as_published(picture, sigma):
    values = smooth(SIDE, SIDE, sigma=sigma, seed=1)
    ours, count = ranked(values, *regions(picture))
    expected, expected_count = published(values, picture)
    assert_close(ours, expected, rtol=1e-9, atol=1e-12)
    assert count == expected_count > 5


def test_is_the_mean_of_both_integrals_in_each_region_and_adds_up(picture):
    classifier = classifier_of(linear_net(SIDE), size=SIDE)
    inputs = classifier.prepare(picture[None]).double()
    attribution = attribute(classifier, inputs, Xrai(), [Target(1)])
    both = [
        attribute(classifier, inputs, IntegratedGradients(baseline=colour), [Target(1)]).relevance[0]
        for colour in ("black", "white")
    ]
    expected, count = published(((both[0] + both[1]) / 2).numpy(), picture)
    assert_close(attribution.relevance[0], expected, rtol=1e-9, atol=1e-12)
    assert attribution.signed
    assert attribution.checks["segments"].tolist() == [count]
    assert_close(attribution.checks["completeness_gap"], torch.zeros(1), rtol=0, atol=1e-9)
    change = [classifier.logits(each)[0, 1] for each in (inputs, *map(classifier.colour, ("black", "white")))]
    assert_close(attribution.relevance.sum(), change[0] - (change[1] + change[2]) / 2, rtol=1e-9, atol=0)


def test_shows_the_object_that_the_score_is_made_of():
    picture = np.full((SIDE, SIDE, 3), 90, np.uint8)
    picture[20:44, 8:32] = (220, 60, 60)
    net = linear_net(SIDE)
    net[1].weight.data.zero_()
    net[1].weight.data[0].view(3, SIDE, SIDE)[0, 20:44, 8:32] = 1
    classifier = classifier_of(net, size=SIDE)
    relevance = attribute(classifier, classifier.prepare(picture[None]).double(), Xrai(steps=1), [Target(0)]).relevance[
        0
    ]
    best = relevance == relevance.max()
    assert best[22:42, 10:30].all()
    assert best.sum() <= 26 * 26  # with the pixel by which it grows


@pytest.mark.parametrize("channels", [1, 3])
def test_of_a_picture_of_one_colour_is_one_region(channels):
    net = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(channels * 64, 3)))
    inputs = torch.full((1, channels, 8, 8), 0.3, dtype=torch.float64)
    attribution = attribute(classifier_of(net, channels=channels), inputs, Xrai(), [Target(1)])
    assert attribution.checks["segments"].tolist() == [1]
    assert attribution.relevance.min() == attribution.relevance.max() != 0


@pytest.mark.parametrize("chunk", [1, 3])
def test_does_not_depend_on_how_its_steps_are_packed(chunk):
    classifier, inputs, targets = classifier_of(linear_net()), random_input(), [Target(1), Target(2)]
    expected, ours = (attribute(classifier, inputs, Xrai(steps=2), targets, chunk=n).relevance for n in (8, chunk))
    assert_close(ours, expected, rtol=1e-9, atol=1e-12)
