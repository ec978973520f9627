from __future__ import annotations

import torch
from helpers import assert_close
from nets import classifier_of, conv_net, random_input

from xai_cli import attribute
from xai_cli.methods.hirescam import HiResCam
from xai_cli.methods.layercam import LayerCam
from xai_cli.targets import Target


def test_leaves_out_positions_of_negative_gradient_instead_of_counting_them_against_the_class():
    activation = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 2, 1, 2)
    gradient = torch.tensor([[5.0, -6.0], [-7.0, 8.0]]).view(1, 2, 1, 2)
    assert LayerCam().cam(activation, gradient).tolist() == [[[5.0, 32.0]]]


def test_equals_hirescam_where_all_gradients_are_positive():
    net = conv_net()
    net[7].weight.data.abs_()
    classifier, inputs = classifier_of(net), random_input()
    ours, theirs = (
        attribute(classifier, inputs, method(layer="4"), [Target(1), Target(2)]) for method in (LayerCam, HiResCam)
    )
    assert not ours.signed
    assert_close(ours.relevance, theirs.relevance, rtol=1e-12, atol=0)
    assert ours.relevance.any()
