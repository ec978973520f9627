"""However samples of pictures are packed into passes, a map is that of the picture alone, to rounding in float64."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_close
from nets import classifier_of, conv_net, random_input
from transformers import Transformer

from xai_cli import attribute
from xai_cli.methods import METHODS
from xai_cli.targets import Target

# Options of methods that make passes of their own, and a net that they fit.
CASES = [
    ("ig", {"steps": 7, "tolerance": 0}, conv_net),
    ("ig", {"steps": 4, "tolerance": 0.005}, conv_net),
    ("blur-ig", {"steps": 7}, conv_net),
    ("smoothgrad", {"samples": 7}, conv_net),
    ("smoothgrad", {"samples": 7, "kind": "squared"}, conv_net),
    ("smoothgrad", {"samples": 7, "kind": "vargrad"}, conv_net),
    ("scorecam", {"layer": "3"}, conv_net),
    ("ablationcam", {"layer": "3"}, conv_net),
    ("guided-backprop", {}, conv_net),
    ("guided-gradcam", {"layer": "4"}, conv_net),
    ("attention-rollout", {}, Transformer),
    ("gradient-rollout", {}, Transformer),
    ("legrad", {}, Transformer),
]
TARGETS = [Target(0), Target(1), Target(2)]


@pytest.mark.parametrize(("name", "options", "net"), CASES)
def test_maps_are_those_of_the_pictures_alone(name, options, net):
    classifier, inputs, method = classifier_of(net()), random_input(3), METHODS[name](**options)
    alone = torch.cat(
        [attribute(classifier, inputs[i : i + 1], method, TARGETS[i : i + 1], chunk=8).relevance for i in range(3)]
    )
    # Maps through gates are float32.
    rounding = 1e-6 if alone.dtype == torch.float32 else 1e-9
    for chunk in (1, 2, 3, 8, 100):
        packed = attribute(classifier, inputs, method, TARGETS, chunk=chunk).relevance
        assert_close(packed, alone, rtol=rounding, atol=1e-12)
