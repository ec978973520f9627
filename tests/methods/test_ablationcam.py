from __future__ import annotations

import copy

import pytest
import torch
from helpers import assert_close
from nets import classifier_of, conv_net, random_input, seeded
from pytorch_grad_cam import AblationCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torch.nn.functional import interpolate

from xai_cli import attribute, load_classifier
from xai_cli.methods.ablationcam import AblationCam
from xai_cli.targets import Target

CLASSES = [1, 2]
TARGETS = [Target(each) for each in CLASSES]


def published(classifier, layer, inputs, classes, channels=None):
    """The paper's map before it is divided by the score, picture by picture and channel by channel."""
    layer = classifier.feature_layer(layer)
    module = classifier.module.get_submodule(layer.name)
    maps = []
    for picture, number in zip(inputs, classes, strict=True):
        seen = []
        handle = module.register_forward_hook(lambda _layer, _inputs, output, seen=seen: seen.append(output))
        y = classifier.logits(picture[None])[0, number]
        handle.remove()
        activation = layer.grid(seen[0])[0]
        total = torch.zeros_like(activation[0])
        for k in range(len(activation)) if channels is None else channels:

            def without(_layer, _inputs, output, k=k):
                output = output.clone()
                layer.grid(output)[:, k] = 0
                return output

            handle = module.register_forward_hook(without)
            total += (y - classifier.logits(picture[None])[0, number]) * activation[k]
            handle.remove()
        maps.append(interpolate(total.relu()[None, None], picture.shape[-2:], mode="bilinear")[0, 0])
    return torch.stack(maps)


def test_of_pooling_and_a_linear_head_is_known():
    net, inputs = conv_net().double(), random_input()
    ours = attribute(classifier_of(net), inputs, AblationCam(layer="4", relu=False), TARGETS).relevance
    activation = net[:5](inputs)
    weights = net[7].weight[CLASSES] * activation.mean(dim=(2, 3))
    cam = torch.einsum("bk,bkhw->bhw", weights, activation)
    assert_close(ours, interpolate(cam[:, None], (8, 8), mode="bilinear")[:, 0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("layer", ["0", "1", "3"])
def test_is_the_published_sum_with_layers_behind(layer):
    classifier, inputs = classifier_of(conv_net()), random_input()
    ours = attribute(classifier, inputs, AblationCam(layer=layer), TARGETS).relevance
    assert_close(ours, published(classifier, layer, inputs, CLASSES), rtol=1e-9, atol=1e-12)


def test_counts_a_channel_that_is_the_same_everywhere_unless_it_is_zero():
    net, inputs = conv_net(), random_input()
    net[3].weight.data[:2] = 0
    net[3].bias.data[:2] = torch.tensor([5.0, 0.0])
    classifier = classifier_of(net)
    ours = attribute(classifier, inputs, AblationCam(layer="3"), TARGETS).relevance
    without = published(classifier, "3", inputs, CLASSES, range(1, 6))
    assert_close(ours, published(classifier, "3", inputs, CLASSES), rtol=1e-9, atol=1e-12)
    assert not torch.allclose(ours, without)


def test_equals_pytorch_grad_cam_behind_a_relu():
    net, inputs = conv_net().float(), random_input().float()
    net[7].bias.data += 5  # the peer divides by the score, which turns maps of negative ones over
    ours = attribute(classifier_of(net, dtype=torch.float32), inputs, AblationCam(layer="1"), TARGETS).relevance
    borrowed = copy.deepcopy(net)
    with AblationCAM(borrowed, [borrowed[1]], batch_size=3) as peer:
        theirs = torch.from_numpy(peer(inputs, [ClassifierOutputTarget(each) for each in CLASSES]))
    low, high = ours.amin((1, 2), keepdim=True), ours.amax((1, 2), keepdim=True)
    assert ours.any(dim=(1, 2)).all()
    assert_close((ours - low) / (high - low), theirs, rtol=0, atol=2e-5)


def test_does_not_change_when_a_number_is_added_to_all_scores():
    net, inputs = conv_net(), random_input()
    plain = attribute(classifier_of(net), inputs, AblationCam(layer="3"), TARGETS).relevance
    net[7].bias.data -= 100
    assert_close(attribute(classifier_of(net), inputs, AblationCam(layer="3"), TARGETS).relevance, plain,
                 rtol=1e-9, atol=1e-9)  # fmt: skip


def test_cuts_a_channel_out_of_the_patches_and_not_out_of_the_class_token():
    classifier = load_classifier("builtin/scenes-vit")
    inputs, method = classifier.example(), AblationCam(channels=4)
    layer = classifier.feature_layer()
    assert layer.prefix == 1
    seen = {}
    handle = classifier.module.get_submodule(layer.name).register_forward_hook(
        lambda _layer, _inputs, output: seen.update(output=output)
    )
    classifier.logits(inputs)
    handle.remove()
    channels = layer.grid(seen["output"])[0].flatten(1).var(dim=1).argsort(descending=True)[:4].tolist()
    expected = published(classifier, None, inputs, [3], channels)
    assert expected.any()
    assert_close(attribute(classifier, inputs, method, [Target(3)]).relevance, expected,
                 rtol=0, atol=1e-4 * float(expected.max()))  # fmt: skip


class Around(nn.Module):
    """A net with a path around its layer; `join` puts both together."""

    def __init__(self, join, width):
        super().__init__()
        self.front, self.layer, self.head = seeded(
            lambda: nn.ModuleList([nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(width, 3)])
        )
        self.join = join

    def forward(self, x):
        x = self.front(x)
        return self.head(self.join(x, self.layer(x).relu()).relu().mean((2, 3)))


JOINS = {
    "nothing": (lambda _x, y: y, 6, 1),
    "a sum": (lambda x, y: x + y, 6, 1),
    "a sum in place": (lambda x, y: x.add_(y), 6, 4),
    "a concatenation": (lambda x, y: torch.cat([x, y], dim=1), 12, 4),
    "as many rows as there": (lambda x, y: y.reshape(len(x), 6, -1, 8), 6, 4),
    "other rows": (lambda x, y: y if len(x) == len(y) else y.roll(1, 0), 6, 4),
    "more rows": (lambda x, y: y if len(x) == len(y) else torch.cat([y, y, y]), 6, 4),
}


@pytest.mark.parametrize(("join", "width", "rows"), JOINS.values(), ids=JOINS)
def test_runs_the_layers_before_once_where_what_goes_around_allows_it(join, width, rows):
    classifier, inputs = classifier_of(Around(join, width)), random_input()
    method = AblationCam(layer="layer")
    method.needs(classifier)
    seen = []
    handle = classifier.module.front.register_forward_hook(lambda _layer, _inputs, output: seen.append(len(output)))
    ours = attribute(classifier, inputs, method, TARGETS, chunk=4).relevance
    handle.remove()
    # After the plain pass and a try: for each of two pictures, two passes for six channels and none.
    assert seen[-4:] == [rows] * 4
    assert_close(ours, published(classifier, "layer", inputs, CLASSES), rtol=1e-9, atol=1e-12)


def test_of_some_channels_adds_up_those_that_vary_most():
    net, inputs = conv_net().double(), random_input(1)
    best = net[:4](inputs)[0].flatten(1).var(dim=1).argsort(descending=True)[:2].tolist()
    classifier = classifier_of(net)
    ours = attribute(classifier, inputs, AblationCam(layer="3", channels=2), TARGETS[:1]).relevance
    assert_close(ours, published(classifier, "3", inputs, CLASSES[:1], best), rtol=1e-9, atol=1e-12)


def test_refuses_a_layer_that_is_called_several_times():
    classifier = load_classifier("torchvision/resnet18", pretrained=False)
    with pytest.raises(ValueError, match=r"'layer4\.1\.relu' is called 2 times; choose the layer around it"):
        AblationCam(layer=["layer4.1.relu"]).needs(classifier)
