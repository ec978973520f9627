from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the usual name
from captum.attr import GuidedGradCam as CaptumGuidedGradCam
from helpers import assert_close
from nets import classifier_of, conv_net, linear_net, random_input, seeded
from torch import nn

from xai_cli import attribute
from xai_cli.engine.plain_pass import plain_pass, union
from xai_cli.methods.deconvnet import Deconvnet
from xai_cli.methods.gradcam import GradCam
from xai_cli.methods.guided_backprop import GuidedBackprop
from xai_cli.methods.guided_gradcam import GuidedGradCam
from xai_cli.methods.saliency import Saliency
from xai_cli.targets import Target

TARGETS = [Target(1), Target(2)]


class Functional(nn.Module):
    """Rectifiers that are functions, which no hook on a module sees."""

    def __init__(self, rectify=F.relu):
        super().__init__()
        self.layers = seeded(lambda: nn.ModuleList([nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 3)]))
        self.rectify = rectify

    def forward(self, x):
        for layer in self.layers[:2]:
            x = self.rectify(layer(x))
        return self.layers[2](x.mean((2, 3)))


def peer(net, layer, inputs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        product = CaptumGuidedGradCam(net, layer).attribute(
            inputs.requires_grad_(), torch.tensor([1, 2]), interpolate_mode="bilinear"
        )
    return product.abs().amax(dim=1)


def test_equals_captum_where_captum_sees_every_relu():
    net, inputs = conv_net().double(), random_input()
    ours = attribute(classifier_of(net), inputs, GuidedGradCam(layer="4"), TARGETS)
    assert ours.relevance.any()
    assert_close(ours.relevance, peer(net, net[4], inputs), rtol=1e-5, atol=1e-12)
    assert (ours.signed, ours.layer, ours.rule, ours.notes) == (False, "4", "relu", ())


def test_is_the_product_of_its_parts_also_where_rectifiers_are_functions():
    classifier, inputs = classifier_of(Functional()), random_input()
    layers = ["layers.0", "layers.1"]
    ours = attribute(classifier, inputs, GuidedGradCam(layer=layers), TARGETS).relevance
    fine, coarse = (
        attribute(classifier, inputs, method, TARGETS).relevance for method in (GuidedBackprop(), GradCam(layer=layers))
    )
    assert_close(ours, fine * coarse, rtol=1e-12, atol=0)
    plain = attribute(classifier, inputs, Saliency(), TARGETS).relevance
    assert not torch.allclose(ours, (plain * coarse).to(ours))


def test_shares_one_gated_gradient_with_guided_backprop():
    classifier, inputs = classifier_of(conv_net()), random_input()
    methods = [GuidedGradCam(layer="4"), GuidedBackprop(), Deconvnet(), GradCam(layer="4")]
    needs = union(classifier, methods)
    assert needs.layers == ("4",)
    passes = []
    handle = classifier.module[0].register_forward_hook(lambda _layer, _inputs, output: passes.append(len(output)))
    evidence = plain_pass(classifier, inputs, needs).evidence(TARGETS, chunk=2)
    together = [method.attribute(evidence) for method in methods]
    handle.remove()
    assert len(passes) == 3  # the plain one, one through either kind of gates
    for method, attribution in zip(methods, together, strict=True):
        alone = attribute(classifier, inputs, method, TARGETS, chunk=2)
        assert torch.equal(attribution.relevance, alone.relevance)
        assert (attribution.layer, attribution.notes) == (alone.layer, alone.notes)


def test_refuses_a_net_without_rectifier_or_says_what_its_map_is():
    net = seeded(lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)))
    classifier, inputs = classifier_of(net), random_input()
    with pytest.raises(ValueError, match=r"no rectifier, so guided-gradcam would .* with --allow-plain-gradient$"):
        attribute(classifier, inputs, GuidedGradCam(layer="0"), TARGETS)
    ours = attribute(classifier, inputs, GuidedGradCam(layer="0", allow_plain_gradient=True), TARGETS)
    methods = Saliency(), GradCam(layer="0")
    plain, coarse = (attribute(classifier, inputs, method, TARGETS).relevance for method in methods)
    assert_close(ours.relevance, plain * coarse, rtol=1e-6, atol=0)
    told = "guided backprop: the model has no rectifier, so this is the plain gradient, as saliency shows it"
    assert ours.notes == (told,)


def test_refuses_what_either_part_refuses():
    with pytest.raises(LookupError, match="no layer is named '9'"):
        GuidedGradCam(layer="9").needs(classifier_of(conv_net()))
    unruled = classifier_of(Functional(lambda x: F.relu(x).sort(dim=1).values))
    with pytest.raises(ValueError, match=r"'sort' .* no rule"):
        GuidedGradCam(layer="layers.1").needs(unruled)
    ours = attribute(unruled, random_input(), GuidedGradCam(layer="layers.1", allow_unruled=True), TARGETS)
    assert "guided backprop: operator 'sort'" in ours.notes[0]
    with pytest.raises(LookupError, match="no late layer"):
        GuidedGradCam(allow_plain_gradient=True).needs(classifier_of(linear_net()))
