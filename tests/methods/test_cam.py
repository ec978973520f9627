from __future__ import annotations

import pytest
import torch
from helpers import assert_close
from nets import classifier_of, conv_net, random_input, seeded
from torch import nn
from torch.nn.functional import interpolate

from xai_cli import attribute, load_classifier
from xai_cli.methods.cam import Cam
from xai_cli.methods.gradcam import GradCam
from xai_cli.targets import Target

TARGETS = [Target(1), Target(2)]


def test_is_the_sum_of_the_feature_maps_weighted_by_the_head():
    net, inputs = conv_net(), random_input()
    classifier = classifier_of(net)
    cam = torch.einsum("bk,bkhw->bhw", net[7].weight[[1, 2]], net[:5](inputs))
    for relu, expected in ((False, cam), (True, cam.relu())):
        ours = attribute(classifier, inputs, Cam(layer="4", relu=relu), TARGETS)
        assert ours.signed == (not relu)
        assert_close(ours.relevance, interpolate(expected[:, None], (8, 8), mode="bilinear")[:, 0], rtol=1e-9, atol=0)
    gradcam = attribute(classifier, inputs, GradCam(layer="4", relu=False), TARGETS).relevance
    signed = attribute(classifier, inputs, Cam(layer="4"), TARGETS).relevance
    assert_close(signed, 16 * gradcam, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("builtin/scenes-cnn", None),
        ("torchvision/resnet18", None),
        ("timm/regnety_002", None),
        ("timm/mobilenetv2_050", "bn2"),  # a norm that is followed by its ReLU
    ],
)
def test_has_the_score_without_its_bias_for_its_mean(name, layer):
    classifier = load_classifier(name, **({} if "builtin" in name else {"pretrained": False}))
    bias = [layer for layer in classifier.module.modules() if isinstance(layer, nn.Linear)][-1].bias.normal_()
    inputs = torch.cat(classifier.probes())
    logits = classifier.logits(inputs).detach()
    scores = logits - bias
    for targets, expected in (
        ([Target(3), Target(1)], scores[[0, 1], [3, 1]]),
        ([Target(3, against=1)] * 2, scores[:, 3] - scores[:, 1]),
    ):
        relevance = attribute(classifier, inputs, Cam(layer=layer), targets).relevance
        # Enlarged by a whole number, a map keeps its mean.
        assert_close(relevance.mean(dim=(1, 2)), expected, rtol=1e-3, atol=1e-4 * float(scores.abs().max()))


class Beside(nn.Module):
    """Scores of the mean of the features and of the picture beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.beside = conv_net(), seeded(lambda: nn.Linear(3 * 64, 3))

    def forward(self, x):
        return self.net(x) + self.beside(x.flatten(1))


def changed(place, *more):
    """The net that CAM was made for, with layers more."""
    layers = list(conv_net())
    return nn.Sequential(*layers[:place], *more, *layers[place:])


def convolution():
    return seeded(lambda: nn.Conv2d(6, 6, 1))


@pytest.mark.parametrize(
    ("net", "layer", "reason"),
    [
        (conv_net(), "3", "positions count differently"),
        (changed(5, convolution(), nn.ReLU()), "4", "positions count differently"),
        (changed(7, nn.LayerNorm(6)), "4", "something between that mean and the scores is not linear"),
        (Beside(), "net.4", "other layers reach the scores beside it"),
    ],
)
def test_refuses_scores_that_are_not_linear_in_the_mean_of_the_layer(net, layer, reason):
    sentence = rf"^cam expects .* mean of layer '{layer}' over its positions, found that {reason}; take gradcam, or"
    with pytest.raises(ValueError, match=sentence):
        Cam(layer=layer).needs(classifier_of(net))


def test_takes_a_linear_layer_between_features_and_mean():
    assert Cam(layer="4").needs(classifier_of(changed(5, convolution()))).layers == ("4",)


def test_refuses_every_layer_that_is_named_and_not_averaged():
    with pytest.raises(ValueError, match="mean of layer '3'"):
        Cam(layer=["4", "3"]).needs(classifier_of(conv_net()))


def test_refuses_a_norm_behind_the_mean_in_a_model_of_the_field():
    with pytest.raises(ValueError, match=r"something between that mean and the scores is not linear"):
        Cam().needs(load_classifier("timm/convnext_atto", pretrained=False))


def test_looks_at_a_named_layer_that_is_averaged_where_the_one_found_is_not():
    classifier = load_classifier("torchvision/squeezenet1_1", pretrained=False)
    with pytest.raises(ValueError, match=r"layer 'features\.12' over its positions, found that positions count differ"):
        Cam().needs(classifier)
    inputs = classifier.example()
    relevance = attribute(classifier, inputs, Cam(layer="classifier.2"), [Target(3)]).relevance
    # Its head has a map for each class, whose mean is the score.
    scores = classifier.module.classifier[:3](classifier.module.features(inputs))[:, 3:4]
    assert_close(relevance, interpolate(scores, (224, 224), mode="bilinear")[:, 0], rtol=1e-4, atol=1e-7)
