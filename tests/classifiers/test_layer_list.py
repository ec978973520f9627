"""Every layer of the forward pass once, with what it gives for one picture and the grid in it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from nets import classifier_of, conv_net, seeded
from torch import Tensor, nn

from xai_cli import load_classifier
from xai_cli.classifiers.layer_list import Layer, list_layers
from xai_cli.classifiers.layers import FeatureLayer


class Net(nn.Module):
    """Layers by name, and a forward pass that calls them as `steps` says."""

    def __init__(self, steps: Callable[[Net, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.steps = steps
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.steps(self, x)


class Named(nn.Module):
    """Gives no tensor."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"x": x}


def listed(module: nn.Module) -> list[Layer]:
    return list_layers(classifier_of(module))


def test_layers_come_in_order_with_type_shape_and_grid() -> None:
    grids = [FeatureLayer(str(place), "channels-first", size, size) for place, size in enumerate([8, 8, 4, 4, 4])]
    shapes = [(1, 4, 8, 8), (1, 4, 8, 8), (1, 4, 4, 4), (1, 6, 4, 4), (1, 6, 4, 4), (1, 6, 1, 1), (1, 6), (1, 3)]
    types = ["Conv2d", "ReLU", "MaxPool2d", "Conv2d", "ReLU", "AdaptiveAvgPool2d", "Flatten", "Linear"]
    assert listed(conv_net()) == [
        Layer(str(place), kind, shape, grids[place] if place < 5 else None, None, chosen=place == 4)
        for place, (kind, shape) in enumerate(zip(types, shapes, strict=True))
    ]


def test_tokens_are_a_grid_after_their_prefix_and_containers_come_first() -> None:
    def steps(net: Net, x: Tensor) -> Tensor:
        tokens = net.block(net.patch(x).flatten(2).transpose(1, 2))
        return net.head(torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1))

    head = nn.Sequential(nn.LayerNorm(5), nn.Flatten(), nn.Linear(17 * 5, 3))
    layers = {"head": head, "patch": nn.Conv2d(3, 5, 2, 2), "block": nn.Sequential(nn.LayerNorm(5))}
    found = {layer.name: layer for layer in listed(seeded(lambda: Net(steps, **layers)))}
    assert list(found) == ["patch", "block", "block.0", "head", "head.0", "head.1", "head.2"]
    assert found["block"].grid == FeatureLayer("block", "tokens", 4, 4)
    assert found["head.0"].grid == FeatureLayer("head.0", "tokens", 4, 4, prefix=1)
    assert found["head.0"].shape == (1, 17, 5)
    assert [layer.name for layer in found.values() if layer.chosen] == ["head.0"]


def test_of_a_layer_that_sees_windows_or_gives_no_tensor_no_grid_is_read() -> None:
    def steps(net: Net, x: Tensor) -> Tensor:
        windows = net.window(x.reshape(-1, 3, 4, 4))
        net.named(x)
        return net.head(windows.reshape(len(x), -1))

    layers = {"window": nn.Conv2d(3, 2, 1), "named": Named(), "idle": nn.ReLU(), "head": nn.Linear(2 * 64, 3)}
    assert listed(seeded(lambda: Net(steps, **layers))) == [
        Layer("window", "Conv2d", (4, 2, 4, 4), None, None, chosen=False),
        Layer("named", "Named", None, None, None, chosen=False),
        Layer("head", "Linear", (1, 3), None, None, chosen=False),
    ]


def test_of_a_layer_that_is_called_twice_the_last_output_counts() -> None:
    pool = nn.AvgPool2d(2)
    layers = {"pool": pool, "head": nn.Linear(12, 3)}
    found = listed(seeded(lambda: Net(lambda net, x: net.head(net.pool(net.pool(x)).flatten(1)), **layers)))
    assert [(layer.name, layer.shape) for layer in found] == [("pool", (1, 3, 2, 2)), ("head", (1, 3))]


def test_a_layer_with_a_folded_norm_refers_to_it() -> None:
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 3)
    net = nn.Sequential(*layers)
    net.pretrained_cfg = {"input_size": (3, 16, 16), "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.25] * 3}
    folded, plain = (list_layers(load_classifier(net, fold=fold)) for fold in (True, False))
    assert (folded[0].grid, folded[0].norm) == (None, "1")
    assert (folded[1].type, folded[1].grid) == ("Identity", FeatureLayer("1", "channels-first", 14, 14))
    assert [(layer.type, layer.norm) for layer in plain[:2]] == [("Conv2d", None), ("BatchNorm2d", None)]


def hooks(module: nn.Module) -> int:
    return sum(len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in module.modules())


def test_nothing_is_left_on_the_module_also_after_an_exception() -> None:
    classifier = classifier_of(conv_net())
    list_layers(classifier)
    assert hooks(classifier.module) == 0
    classifier.module[4].forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        list_layers(classifier)
    assert hooks(classifier.module) == 0
