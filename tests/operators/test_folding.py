from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import assert_close
from nets import random_input, seeded
from timm.layers import BatchNormAct2d
from torch import nn

from xai_cli.operators.folding import fold_batch_norm


class PreActivation(nn.Module):
    """The norm comes before the convolution, and the sum feeds a norm too: only the inner norm follows a
    convolution.
    """

    def __init__(self):
        super().__init__()
        self.before, self.inner = nn.BatchNorm2d(3), nn.BatchNorm2d(4)
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1, bias=False)
        self.after = nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.second(F.relu(self.inner(self.first(F.relu(self.before(x))))))
        return self.after(x + y)


class Reused(nn.Module):
    """One convolution used twice, once into a norm: folding it would change the other use."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(x)) + self.conv(x)


class Forked(nn.Module):
    """The convolution's output feeds a norm and something else."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y.sigmoid()


class Shuffled(nn.Module):
    """Modules declared in another order than they run: the order says nothing."""

    def __init__(self):
        super().__init__()
        self.norm1, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.norm2, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))


CASES = {
    "conv": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), 1),
    "conv without bias, norm without affine": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False)),
        1,
    ),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, stride=2), nn.BatchNorm2d(6)), 1),
    "norm with activation": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4)), 1),
    "linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.BatchNorm1d(5)), 1),
    "linear over tokens": (
        lambda: nn.Sequential(nn.Flatten(2), nn.Linear(64, 3), nn.BatchNorm1d(3)),
        0,
    ),
    "pre-activation": (PreActivation, 1),
    "reused": (Reused, 0),
    "forked": (Forked, 0),
    "shuffled": (Shuffled, 2),
    "norm first": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)), 0),
}


def randomised(net):
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 2)
            if layer.affine:
                nn.init.uniform_(layer.weight, -2, 2)
                nn.init.uniform_(layer.bias, -1, 1)
    return net.double().eval()


@pytest.mark.parametrize("case", CASES)
def test_folds_what_it_may_and_keeps_the_output(case):
    make, foldable = CASES[case]
    net = seeded(lambda: randomised(make()))
    inputs = random_input()
    expected = net(inputs)
    assert len(fold_batch_norm(net, inputs)) == foldable
    assert_close(net(inputs), expected, rtol=1e-9, atol=1e-12)


def test_keeps_the_activation_that_a_folded_norm_carried():
    net = seeded(lambda: randomised(nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4))))
    fold_batch_norm(net, random_input())
    assert isinstance(net[1], nn.ReLU)


def test_does_not_touch_a_norm_in_training_mode():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).double().train()
    assert fold_batch_norm(net, random_input()) == {}


def test_leaves_no_function_mode_behind_when_the_net_fails():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(5)).double().eval()
    with pytest.raises(RuntimeError):
        fold_batch_norm(net, random_input())
    assert torch.overrides._len_torch_function_stack() == 0
