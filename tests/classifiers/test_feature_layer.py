"""Layers by name: which are taken, and what is said of those that are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from nets import classifier_of, conv_net, seeded
from torch import Tensor, nn

from xai_cli import load_classifier
from xai_cli.classifiers.classifier import Classifier
from xai_cli.classifiers.layer_list import list_layers


@pytest.fixture(scope="module")
def vit() -> Classifier:
    return load_classifier("builtin/scenes-vit")


class Net(nn.Module):
    """Convolutions and a head, called as `steps` says."""

    def __init__(self, steps: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.steps = steps
        self.first, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        self.second, self.third = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.steps(self, x).mean((2, 3)))


def net(steps: Callable[[Net, Tensor], Tensor]) -> Classifier:
    return classifier_of(seeded(lambda: Net(steps)))


def test_exactly_the_layers_that_are_listed_with_a_grid_can_be_named(vit: Classifier) -> None:
    layers = list_layers(vit)
    assert {layer.name for layer in layers if layer.grid} >= {"blocks.3.norm1", "blocks.2", "patch_embed"}
    for layer in layers:
        if layer.grid:
            assert vit.feature_layer(layer.name) == layer.grid
        else:
            instead = "name the norm" if layer.norm else r"choose another with --layer, such as 'blocks\.3\.norm1'"
            with pytest.raises(ValueError, match=instead):
                vit.feature_layer(layer.name)


@pytest.mark.parametrize("name", ["blocks.3", "blocks.3.attn", "norm"])
def test_behind_the_last_attention_the_gradient_is_exactly_zero(vit: Classifier, name: str) -> None:
    message = (
        rf"the scores do not depend on the positions of layer '{name}', the gradient there is exactly zero: it is "
        r"behind the last attention, and only its class token is read; choose another with --layer, such as "
        r"'blocks\.3\.norm1' or 'blocks\.2' or 'blocks\.1'$"
    )
    with pytest.raises(ValueError, match=message):
        vit.feature_layer(name)


def test_a_layer_without_extent_is_told_its_shape_and_layers_that_have_one() -> None:
    cnn = classifier_of(conv_net())
    for name, shape in (("7", r"\(1, 3\)"), ("5", r"\(1, 6, 1, 1\)")):
        message = rf"layer '{name}' has no grid of positions, its output is {shape}; .* such as '4'$"
        with pytest.raises(ValueError, match=message):
            cnn.feature_layer(name)


def test_an_unknown_layer_is_told_the_three_nearest(vit: Classifier) -> None:
    with pytest.raises(
        LookupError, match=r"^\"?no layer is named 'block\.1'; did you mean 'blocks\.1' or '.*' or '.*'\?"
    ):
        vit.feature_layer("block.1")
    with pytest.raises(LookupError, match=r"no layer is named 'xyz'; did you mean '.*' or '.*' or '.*'"):
        vit.feature_layer("xyz")


def test_one_position_that_reaches_the_scores_is_enough_for_a_named_layer() -> None:
    def steps(net: Net, x: Tensor) -> Tensor:
        return net.second(net.first(x))[:, :, :1, :1]

    layer = net(steps).feature_layer("second")
    assert (layer.height, layer.width) == (6, 6)


def test_a_layer_whose_output_nobody_takes_is_refused_without_a_word_of_attention() -> None:
    def steps(net: Net, x: Tensor) -> Tensor:
        x = net.second(net.first(x))
        net.third(x)
        return x

    message = r"layer 'third', the gradient there is exactly zero; choose another with --layer, such as 'second'$"
    with pytest.raises(ValueError, match=message):
        net(steps).feature_layer("third")


def test_a_named_layer_of_a_net_that_keeps_no_gradient_is_taken() -> None:
    def steps(net: Net, x: Tensor) -> Tensor:
        with torch.no_grad():
            return net.second(net.first(x))

    classifier = net(steps)
    classifier.module.forward = torch.no_grad()(classifier.module.forward)
    assert classifier.feature_layer("second").height == 6


def test_of_a_layer_that_is_called_twice_the_last_output_must_do() -> None:
    def steps(net: Net, x: Tensor) -> Tensor:
        x = net.third(net.second(net.second(net.first(x))))
        net.third(x[:, :, :1, :1])
        return x

    assert net(steps).feature_layer().name == "second"


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


@pytest.mark.parametrize(
    ("behind", "name"),
    [
        ([nn.ReLU(inplace=True)], "1"),
        ([nn.GELU()], "1"),
        ([nn.Identity(), nn.ReLU()], "2"),  # it is given the very output of the convolution
        ([nn.Softmax(dim=1)], "0"),
        ([nn.AvgPool2d(3, 1, 1)], "0"),
        ([Gated()], "0"),  # the scores have the convolution's output by another way too
    ],
)
def test_a_plain_convolution_is_looked_at_behind_its_activation(behind: list[nn.Module], name: str) -> None:
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    found = classifier_of(seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), *behind, *head))).feature_layer()
    assert found.name == name


def test_an_activation_that_is_called_twice_is_not_looked_at() -> None:
    relu = nn.ReLU()
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)]
    net = seeded(lambda: nn.Sequential(nn.Conv2d(3, 16, 3), relu, nn.Conv2d(16, 16, 3), relu, *head))
    assert classifier_of(net).feature_layer().name == "2"
