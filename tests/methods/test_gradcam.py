from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from captum.attr import LayerGradCam
from helpers import assert_close
from nets import classifier_of, conv_net, random_input, seeded
from torch.nn.functional import interpolate

from xai_cli import attribute, load_classifier
from xai_cli.engine.plain_pass import plain_pass
from xai_cli.methods.gradcam import GradCam
from xai_cli.targets import Target


def test_equals_cam_where_global_average_pooling_feeds_a_linear_head():
    net, inputs = conv_net().double(), random_input()
    classifier = classifier_of(net)
    signed = attribute(classifier, inputs, GradCam(layer="4", relu=False), [Target(1), Target(2)])
    activation = net[:5](inputs)
    cam = torch.einsum("bk,bkhw->bhw", net[7].weight[[1, 2]], activation)
    # Grad-CAM averages the gradient over H x W positions, each of which has the head's weight divided by H x W.
    expected = interpolate(cam[:, None] / 16, (8, 8), mode="bilinear")[:, 0]
    assert_close(signed.relevance, expected, rtol=1e-9, atol=1e-12)
    bias = net[7].bias[[1, 2]]
    assert_close(cam.mean(dim=(1, 2)) + bias, net(inputs)[[0, 1], [1, 2]], rtol=1e-9, atol=1e-12)


def test_keeps_only_evidence_for_the_target_unless_told_otherwise():
    classifier, inputs = classifier_of(conv_net()), random_input(4)
    kept = attribute(classifier, inputs, GradCam(layer="3"), [Target(0)] * 4)
    signed = attribute(classifier, inputs, GradCam(layer="3", relu=False), [Target(0)] * 4)
    assert not kept.signed
    assert signed.signed
    assert kept.relevance.min() == 0
    assert signed.relevance.min() < 0


def test_equals_captum_before_enlarging():
    net, inputs = conv_net().double(), random_input()
    ours = attribute(classifier_of(net), inputs, GradCam(layer="4"), [Target(1), Target(2)]).relevance
    theirs = LayerGradCam(net, net[4]).attribute(inputs, torch.tensor([1, 2]), relu_attributions=True)
    assert_close(ours, interpolate(theirs, (8, 8), mode="bilinear")[:, 0], rtol=1e-5, atol=1e-12)


def test_differentiates_no_deeper_than_the_layer():
    classifier = classifier_of(conv_net())
    seen = []
    handle = classifier.module[0].register_forward_hook(lambda _m, _i, output: seen.append(output.requires_grad))
    try:
        passed = plain_pass(classifier, random_input(), GradCam(layer="3").needs(classifier))
    finally:
        handle.remove()
    assert seen[-1] is False
    assert passed.logits.requires_grad


def test_names_the_nearest_layers_when_there_is_none_of_that_name():
    classifier = load_classifier("builtin/scenes-cnn")
    with pytest.raises(LookupError, match=r"no layer is named 'layer4\.O'; did you mean 'layer4\.0'"):
        attribute(classifier, classifier.example(), GradCam(layer="layer4.O"))


def test_refuses_a_layer_without_positions():
    classifier = load_classifier("builtin/scenes-cnn")
    with pytest.raises(ValueError, match=r"layer 'fc' has no grid of positions, its output is \(1, 10\)"):
        attribute(classifier, classifier.example(), GradCam(layer="fc"))


def test_points_at_a_patch_pasted_into_one_quadrant():
    classifier = load_classifier("torchvision/resnet18", pretrained=False)
    quadrants = []
    for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):
        inputs = torch.zeros(1, 3, 224, 224)
        noise = torch.randn(3, 96, 96, generator=torch.Generator().manual_seed(3))
        inputs[0, :, 8 + 112 * y : 104 + 112 * y, 8 + 112 * x : 104 + 112 * x] = noise
        quiet = attribute(classifier, torch.zeros(1, 3, 224, 224), GradCam(relu=False), [Target(0)]).relevance[0]
        relevance = (attribute(classifier, inputs, GradCam(relu=False), [Target(0)]).relevance[0] - quiet).abs()
        shares = [
            float(relevance[112 * i : 112 * i + 112, 112 * j : 112 * j + 112].sum()) for i in (0, 1) for j in (0, 1)
        ]
        quadrants.append(int(np.argmax(shares)))
    assert quadrants == [0, 1, 2, 3]


class TestNamedLayers:
    """Layers by name, compared with the module as its library makes it, which nothing was folded into."""

    @pytest.fixture(scope="class")
    def module(self):
        module = seeded(lambda: torchvision.models.resnet18())
        for layer in module.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.running_mean.uniform_(-0.1, 0.1)
                layer.running_var.uniform_(0.5, 1.5)
        return module.eval()

    @pytest.mark.parametrize(("layer", "fold"), [("layer4.1.bn2", True), ("layer4.1.conv2", False)])
    def test_give_what_captum_gives(self, module, layer, fold):
        classifier = load_classifier(module, fold=fold)
        inputs = classifier.example()
        ours = attribute(classifier, inputs, GradCam(layer=layer, relu=False), [Target(3)]).relevance
        theirs = LayerGradCam(module, module.get_submodule(layer)).attribute(inputs.requires_grad_(), 3)
        expected = interpolate(theirs, (224, 224), mode="bilinear")[:, 0]
        assert_close(ours, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))

    def test_are_refused_where_folding_took_their_own_output_away(self, module):
        classifier = load_classifier(module)
        with pytest.raises(ValueError, match=r"name the norm, 'layer4\.1\.bn2', or give --no-fold"):
            classifier.feature_layer("layer4.1.conv2")

    def test_are_refused_where_rows_are_windows_and_not_pictures(self):
        classifier = load_classifier("timm/swin_tiny_patch4_window7_224", pretrained=False)
        with pytest.raises(ValueError, match=r"does not work on whole pictures, its output for two of them is \(128,"):
            classifier.feature_layer("layers.0.blocks.0.attn.proj")
