from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import assert_close
from nets import classifier_of, conv_net, linear_net, random_input
from torch import nn

from xai_cli import load_classifier
from xai_cli.classifiers.function import ScoreFunction


class TestLogitsWith:
    def test_gives_the_plain_scores_if_the_output_stays_as_it_is(self):
        classifier, inputs = classifier_of(conv_net()), random_input()
        same = classifier.logits_with(inputs, "3", lambda output: output)
        assert torch.equal(same, classifier.logits(inputs))

    def test_runs_the_layers_before_once_for_many_rows_behind(self):
        net, inputs = conv_net().double(), random_input(1)
        variants = torch.stack([net[:4](inputs)[0] * factor for factor in (0.0, 0.5, 2.0)])
        seen = []
        net[0].register_forward_hook(lambda _layer, _inputs, output: seen.append(len(output)))
        scores = classifier_of(net).logits_with(inputs, "3", lambda output: output * variants / output)
        assert_close(scores, net[4:](variants), rtol=1e-9, atol=1e-12)
        assert seen == [1]

    def test_may_change_the_first_of_several_outputs(self):
        class Two(nn.Module):
            def forward(self, x):
                return x.mean((2, 3)), "kept"

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.two = Two()

            def forward(self, x):
                scores, word = self.two(x)
                assert word == "kept"
                return {"logits": scores}

        inputs = random_input()
        doubled = classifier_of(Net()).logits_with(inputs, "two", lambda output: 2 * output)
        assert_close(doubled, 2 * inputs.mean((2, 3)), rtol=1e-12, atol=0)

    def test_leaves_nothing_on_the_layer_when_it_fails(self):
        net, inputs = conv_net(), random_input()
        classifier = classifier_of(net)
        with pytest.raises(ZeroDivisionError):
            classifier.logits_with(inputs, "3", lambda _output: 1 / 0)
        assert not net[3]._forward_hooks


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_that_the_input_was_prepared_from(channels):
    classifier = classifier_of(linear_net(), size=16, channels=channels)
    every_level = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(channels, axis=3)
    pixels = classifier.pixels(classifier.prepare(every_level))
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, every_level)


def test_pixels_beyond_black_and_white_are_cut_off():
    classifier = classifier_of(linear_net())
    inputs = torch.cat([classifier.colour("black") - 1, classifier.colour("white") + 1])
    assert np.array_equal(classifier.pixels(inputs)[:, 0, 0, 0], [0, 255])


@pytest.mark.parametrize("fold", [True, False])
def test_the_layer_found_is_behind_the_norm_and_its_rectifier_folded_or_not(fold):
    classifier = load_classifier("timm/mobilenetv2_050", pretrained=False, fold=fold)
    layer = classifier.feature_layer()
    assert layer.name == "bn2"
    assert classifier.feature_layer("bn2") == layer


class TestInDtype:
    def test_computes_the_same_in_another_type(self):
        classifier = load_classifier("builtin/scenes-cnn")
        half = classifier.in_dtype(torch.bfloat16)
        inputs = torch.cat(classifier.probes())
        with torch.no_grad():
            expected, found = classifier.logits(inputs), half.logits(inputs)
        assert {weight.dtype for weight in half.module.parameters()} == {torch.bfloat16}
        assert {weight.dtype for weight in classifier.module.parameters()} == {torch.float32}
        assert found.dtype == torch.float32
        assert 0 < (found - expected).abs().max() < 0.05 * expected.abs().max()

    def test_is_made_once(self):
        classifier = classifier_of(conv_net())
        half = classifier.in_dtype(torch.float16)
        assert half is classifier.in_dtype(torch.float16)
        assert classifier.in_dtype(torch.float64) is classifier
        assert replace(classifier, module=linear_net()).in_dtype(torch.float16) is not half


class Cut(nn.Module):
    """The mean of each channel, on a way that ends before the picture where `how` says."""

    def __init__(self, how):
        super().__init__()
        self.how, self.weight = how, nn.Parameter(torch.ones(3))

    def forward(self, x):
        with torch.set_grad_enabled(self.how != "no_grad" and torch.is_grad_enabled()):
            if self.how == "in_place":
                x.mul_(2)
            x = torch.from_numpy(x.numpy()) if self.how == "numpy" else x.detach() if self.how == "detach" else x
            return self.weight * x.mean((2, 3))


@pytest.mark.parametrize(
    ("how", "differentiable"),
    [("whole", True), ("in_place", True), ("no_grad", False), ("detach", False), ("numpy", False)],
)
def test_knows_whether_a_gradient_comes_back_from_a_function_to_the_picture(how, differentiable):
    net = Cut(how)
    classifier = classifier_of(ScoreFunction(net.forward))
    net.requires_grad_()  # a graph of the weights alone is none of the picture
    with torch.no_grad():
        assert classifier.differentiable is differentiable
    assert classifier_of(net).differentiable  # of a module it is taken for granted


def test_a_class_token_of_a_function_without_gradients_is_not_followed():
    with pytest.raises(ValueError, match=r"^gradients are needed, and test gives scores alone; take occlusion"):
        _ = classifier_of(ScoreFunction(Cut("no_grad").forward)).attention
