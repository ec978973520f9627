from __future__ import annotations

import pytest
import torch
from helpers import assert_close
from nets import classifier_of, conv_net, random_input, seeded
from pytorch_grad_cam import ScoreCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torch.nn.functional import interpolate

from xai_cli import attribute
from xai_cli.methods.ablationcam import AblationCam
from xai_cli.methods.gradcam import GradCam
from xai_cli.methods.scorecam import ScoreCam
from xai_cli.targets import Target

CLASSES = [1, 2]
TARGETS = [Target(each) for each in CLASSES]


def published(net, layer, inputs, classes, channels=None):
    """Algorithm 1 of the paper, picture by picture and channel by channel."""
    maps = []
    for picture, number in zip(inputs, classes, strict=True):
        activation = net[: layer + 1](picture[None])[0]
        kept, increases = [], []
        for k in range(len(activation)) if channels is None else channels:
            enlarged = interpolate(activation[None, None, k], picture.shape[-2:], mode="bilinear")[0, 0]
            if enlarged.max() == enlarged.min():
                continue
            mask = (enlarged - enlarged.min()) / (enlarged.max() - enlarged.min())
            empty = torch.zeros_like(picture)
            increases.append((net((picture * mask)[None]) - net(empty[None]))[0, number])
            kept.append(activation[k])
        weights = torch.stack(increases).exp() / torch.stack(increases).exp().sum()
        summed = sum(weight * each for weight, each in zip(weights, kept, strict=True))
        maps.append(interpolate(summed.relu()[None, None], picture.shape[-2:], mode="bilinear")[0, 0])
    return torch.stack(maps)


def test_is_the_published_algorithm_though_it_looks_at_no_empty_picture():
    net, inputs = conv_net().double(), random_input()
    ours = attribute(classifier_of(net), inputs, ScoreCam(layer="3"), TARGETS).relevance
    assert_close(ours, published(net, 3, inputs, CLASSES), rtol=1e-9, atol=1e-12)


def test_equals_pytorch_grad_cam_but_for_how_it_enlarges(monkeypatch):
    # The peer puts the corners of the grid on the corners of the picture, the paper's own code does not.
    monkeypatch.setattr(nn, "UpsamplingBilinear2d", lambda size: nn.Upsample(size=size, mode="bilinear"))
    classifier, inputs = classifier_of(conv_net(), size=32, dtype=torch.float32), random_input(2, 32).float()
    ours = attribute(classifier, inputs, ScoreCam(layer="4"), TARGETS).relevance
    with ScoreCAM(classifier.module, [classifier.module[4]]) as peer:
        peer.batch_size = 4
        theirs = torch.from_numpy(peer(inputs, [ClassifierOutputTarget(each) for each in CLASSES]))
    low, high = ours.amin((1, 2), keepdim=True), ours.amax((1, 2), keepdim=True)
    assert_close((ours - low) / (high - low), theirs, rtol=0, atol=2e-5)


class TestChannelsThatAreTheSameEverywhere:
    @pytest.fixture
    def net(self):
        net = conv_net().double()
        nn.init.zeros_(net[3].weight[:2].detach())
        nn.init.ones_(net[3].bias[:2].detach())
        return net

    def test_have_no_weight(self, net):
        ours = attribute(classifier_of(net), random_input(), ScoreCam(layer="3"), TARGETS).relevance
        assert_close(ours, published(net, 3, random_input(), CLASSES, range(2, 6)), rtol=1e-9, atol=1e-12)

    def test_take_no_pass(self, net):
        assert sum(passes(classifier_of(net), random_input(), ScoreCam(layer="3"), chunk=1)) == 2 * 4

    def test_give_an_empty_map_if_there_are_no_others(self, net):
        inputs = random_input()
        inputs[0] = 0  # of which a convolution gives its bias
        ours = attribute(classifier_of(net), inputs, ScoreCam(layer="0"), TARGETS).relevance
        assert not ours[0].any()
        assert_close(ours[1:], published(net, 0, inputs[1:], CLASSES[1:]), rtol=1e-9, atol=1e-12)


def test_of_some_channels_looks_at_those_that_vary_most():
    net, inputs = conv_net().double(), random_input(1)
    spread = net[:4](inputs)[0].flatten(1).var(dim=1)
    ours = attribute(classifier_of(net), inputs, ScoreCam(layer="3", channels=2), TARGETS[:1]).relevance
    best = spread.argsort(descending=True)[:2].tolist()
    assert_close(ours, published(net, 3, inputs, CLASSES[:1], best), rtol=1e-9, atol=1e-12)
    assert sum(passes(classifier_of(net), inputs, ScoreCam(layer="3", channels=2), chunk=1)) == 2


def test_lets_scores_through_that_are_no_numbers():
    class Undefined(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) / (x.flatten(1).amax(1, keepdim=True) > 3)  # of masked pictures 0 / 0

    net = nn.Sequential(nn.Conv2d(3, 3, 1), Undefined())
    relevance = attribute(classifier_of(net), random_input(1).clamp(max=2), ScoreCam(layer="0"), TARGETS[:1]).relevance
    assert not relevance.isfinite().all()


@pytest.mark.parametrize("method", [ScoreCam, AblationCam])
def test_needs_no_gradient(method):
    class Saturated(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)).clamp(-1, 1)

    net, inputs = seeded(lambda: nn.Sequential(nn.Conv2d(3, 3, 3), Saturated())), random_input(4) + 50
    with pytest.raises(ValueError, match="its gradient there is exactly zero"):
        attribute(classifier_of(net), inputs, GradCam(layer="0"), "a")
    relevance = attribute(classifier_of(net), inputs, method(layer="0", relu=False), "a").relevance
    assert relevance.isfinite().all()
    assert relevance.flatten(1).any(dim=1).all()


def passes(classifier, inputs, method, chunk, layer="0"):
    """The rows of each pass that the method makes itself."""
    method.needs(classifier)  # looks for the layer by passes of its own
    seen = []
    handle = classifier.module.get_submodule(layer).register_forward_hook(
        lambda _layer, _inputs, output: seen.append(len(output))
    )
    attribute(classifier, inputs, method, [Target(1)] * len(inputs), chunk=chunk)
    handle.remove()
    return seen[1:]  # the first one is the plain pass
