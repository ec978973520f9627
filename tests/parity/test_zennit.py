"""Where zennit is right, maps are the same: nets of ReLU whose sums and norms its canonizers know.

zennit 0.5, Anders et al. 2021 (arXiv:2106.13200).
"""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from nets import classifier_of, random_input, seeded
from torch import Tensor, nn
from torchvision.models import resnet18, squeezenet1_1, vgg
from zennit import composites
from zennit.attribution import Gradient
from zennit.canonizers import Canonizer, SequentialMergeBatchNorm
from zennit.torchvision import ResNetCanonizer

from xai_cli import attribute
from xai_cli.methods.lrp import Lrp
from xai_cli.targets import Target

TARGETS = [0, 1]
X = random_input(batch=2, size=64, dtype=torch.float32).clamp(-2, 2)


def vgg11(*, norms: bool) -> nn.Module:
    """torchvision's features with a head that is quicker to draw."""
    features = vgg.make_layers(vgg.cfgs["A"], batch_norm=norms)
    head = nn.Sequential(nn.Linear(512, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 3))
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


NETS = {
    "vgg11": lambda: vgg11(norms=False),
    "vgg11_bn": lambda: vgg11(norms=True),
    "resnet18": lambda: resnet18(num_classes=3),
    "squeezenet1_1": lambda: squeezenet1_1(num_classes=3),
}
CANONIZERS: dict[str, list[Canonizer]] = {"vgg11_bn": [SequentialMergeBatchNorm()], "resnet18": [ResNetCanonizer()]}
COMPOSITES = {
    "epsilon": composites.LayerMapComposite,
    "epsilon-plus": composites.EpsilonPlus,
    "epsilon-plus-flat": composites.EpsilonPlusFlat,
    "epsilon-alpha2-beta1": composites.EpsilonAlpha2Beta1,
    "epsilon-alpha2-beta1-flat": composites.EpsilonAlpha2Beta1Flat,
    "epsilon-gamma-box": lambda canonizers: composites.EpsilonGammaBox(-2.0, 2.0, canonizers=canonizers),
    "excitation-backprop": composites.ExcitationBackprop,
}


@cache
def calibrated(name: str) -> nn.Module:
    """Random weights, of a size at which what zennit adds to every denominator, 1e-6, is small; random norms."""
    net = seeded(NETS[name])
    generator = torch.Generator().manual_seed(3)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                layer.bias.data.normal_(0, 0.1, generator=generator)
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.data.uniform_(0.7, 1.3, generator=generator)
            layer.bias.data.normal_(0, 0.2, generator=generator)
            layer.momentum = None
            layer.eps = 1e-12  # zennit adds it once more when it has merged a norm, which moves the scores by 1e-4
    with torch.no_grad():
        net.train()(random_input(batch=4, size=64, dtype=torch.float32))  # the norms learn what they see
    return net.eval().requires_grad_(False)


def zennits(name: str, composite: str) -> Tensor:
    net = copy.deepcopy(calibrated(name))
    if composite == "epsilon":
        epsilon = composites.Epsilon(epsilon=1e-6)
        layers = [(composites.Convolution, epsilon), (nn.Linear, epsilon)]
        made = composites.LayerMapComposite(composites.layer_map_base() + layers, CANONIZERS.get(name, []))
    else:
        made = COMPOSITES[composite](canonizers=CANONIZERS.get(name, []))
    with Gradient(net, made) as attributor:
        _, relevance = attributor(X, lambda logits: torch.eye(3)[TARGETS] * logits)
    return relevance.sum(1)


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("name", NETS)
def test_maps_are_zennits(name, composite):
    classifier = classifier_of(copy.deepcopy(calibrated(name)), size=64, dtype=torch.float32)
    targets = [Target(each) for each in TARGETS]
    # Its mean is 0.5 and its deviation 0.25: black is -2, white is 2.
    found = attribute(classifier, X, Lrp(composite=composite), targets).relevance
    cosine = torch.cosine_similarity(found.flatten(1), zennits(name, composite).flatten(1))
    assert cosine.min() >= 0.9999
