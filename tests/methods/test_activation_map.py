from __future__ import annotations

import pytest
import pytorch_grad_cam
import torch
from helpers import assert_close
from nets import classifier_of, conv_net, random_input
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from xai_cli import attribute, load_classifier
from xai_cli.engine.plain_pass import plain_pass, union
from xai_cli.methods.activation_map import fused
from xai_cli.methods.eigencam import EigenCam
from xai_cli.methods.gradcam import GradCam
from xai_cli.methods.gradcam_plusplus import GradCamPlusPlus
from xai_cli.methods.hirescam import HiResCam
from xai_cli.methods.layercam import LayerCam
from xai_cli.methods.xgradcam import XGradCam
from xai_cli.targets import Target

TARGETS = [Target(1), Target(2)]


class TestFusing:
    def test_gives_layers_of_any_scale_the_same_say_in_every_picture(self):
        deep = torch.tensor([[[1.0, -4.0]], [[2.0, 0.0]]])
        shallow = torch.tensor([[[3e-6, 1.5e-6]], [[-1e-6, 5e-7]]])
        expected = torch.tensor([[[0.625, -0.25]], [[0.0, 0.25]]])
        assert_close(fused([deep, shallow]), expected, rtol=1e-6, atol=0)

    def test_takes_a_layer_without_a_map_for_nothing_to_add(self):
        deep = torch.tensor([[[1.0, -4.0]]])
        assert_close(fused([deep, torch.zeros(1, 1, 2)]), deep / 8, rtol=0, atol=0)

    def test_leaves_one_map_as_it_is(self):
        deep = torch.tensor([[[1.0, -4.0]]])
        assert fused([deep]) is deep

    def test_is_of_the_layers_whatever_their_order_and_however_often_they_are_named(self):
        classifier, inputs = classifier_of(conv_net(), dtype=torch.float32), random_input(dtype=torch.float32)
        once = attribute(classifier, inputs, HiResCam(layer=["4", "3", "0"]), TARGETS)
        again = attribute(classifier, inputs, HiResCam(layer=["0", "4", "3", "0"]), TARGETS)
        alone = [attribute(classifier, inputs, HiResCam(layer=name), TARGETS).relevance for name in "034"]
        assert torch.equal(once.relevance, again.relevance)
        assert once.layer == again.layer == "0, 3, 4"
        assert torch.equal(once.relevance, fused(alone))
        assert once.signed


class Gated(nn.Module):
    """Its score looks at the features only of a picture whose first pixel is positive."""

    def __init__(self) -> None:
        super().__init__()
        self.net = conv_net()

    def forward(self, x):
        features = self.net[:5](x) * (x[:, :1, :1, :1] > 0)
        return self.net[5:](features)


def test_a_gradient_of_zero_is_an_error_for_a_picture_and_none_for_a_map_of_no_class():
    classifier, inputs = classifier_of(Gated()), random_input()
    inputs[:, 0, 0, 0] = torch.tensor([1.0, -1.0])
    attribute(classifier, inputs[:1], GradCam(layer="net.4"), TARGETS[:1])
    with pytest.raises(ValueError, match=r"does not depend on layer 'net\.4', its gradient there is exactly zero"):
        attribute(classifier, inputs, GradCam(layer="net.4"), TARGETS)
    assert attribute(classifier, inputs, EigenCam(layer="net.4"), TARGETS).relevance[1].any()


def test_all_of_a_run_share_one_forward_and_one_backward_pass(monkeypatch):
    classifier, counts = classifier_of(conv_net()), {"forward": 0, "backward": 0}
    methods = [kind(layer="4") for kind in (GradCam, GradCamPlusPlus, LayerCam, HiResCam, XGradCam, EigenCam)]
    needs = union(classifier, methods)

    def counting(name, call):
        def counted(*arguments, **options):
            counts[name] += 1
            return call(*arguments, **options)

        return counted

    monkeypatch.setattr(classifier.module, "forward", counting("forward", classifier.module.forward))
    monkeypatch.setattr(torch.autograd, "grad", counting("backward", torch.autograd.grad))
    evidence = plain_pass(classifier, random_input(), needs).evidence(TARGETS, chunk=2)
    for method in methods:
        method.attribute(evidence)
    assert counts == {"forward": 1, "backward": 1}


PEERS = {GradCam: "GradCAM", HiResCam: "HiResCAM", LayerCam: "LayerCAM", XGradCam: "XGradCAM"}


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("builtin/scenes-cnn", {GradCamPlusPlus: "GradCAMPlusPlus"}),
        ("torchvision/resnet18", {GradCamPlusPlus: "GradCAMPlusPlus"}),
        # The peer's Grad-CAM++ divides by next to nothing where activations sum to a negative number.
        ("timm/vit_tiny_patch16_224", {}),
    ],
)
def test_equal_pytorch_grad_cam_on_the_layer_found_automatically(name, more):
    classifier = load_classifier(name, **({} if "builtin" in name else {"pretrained": False}))
    # The peer's Grad-CAM++ adds 1e-6 to squared gradients, which are 1e-7 here. Larger logits change no other map.
    [layer for layer in classifier.module.modules() if isinstance(layer, nn.Linear)][-1].weight.mul_(1e4)
    for method, peer in {**PEERS, **more}.items():
        ours, theirs = compared(classifier, method(relu=True), getattr(pytorch_grad_cam, peer))
        assert_close(ours, theirs, rtol=0, atol=2e-5)


def compared(classifier, method, peer):
    """Our map and the peer's `(h, w)`, both scaled to 0..1, because the peer does so before it enlarges (with
    OpenCV).
    """
    layer, inputs = classifier.feature_layer(), classifier.example()
    ours = attribute(classifier, inputs, method, [Target(3)]).relevance[0]
    reshape = layer.grid if layer.layout == "tokens" else None
    with peer(classifier.module, [classifier.module.get_submodule(layer.name)], reshape) as cam:
        theirs = torch.from_numpy(cam(inputs.requires_grad_(), [ClassifierOutputTarget(3)])[0])
    return [(each - each.min()) / (each.max() - each.min()) for each in (ours, theirs)]
