from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the usual name
from helpers import assert_close
from torch import nn

from xai_cli.operators.guided import Deconvnet, Guided
from xai_cli.operators.mode import OperatorMode

INPUTS = [-1.0, -1.0, 1.0, 1.0]
GRADIENTS = [2.0, -2.0, 3.0, -3.0]

RELUS = {
    "module": nn.ReLU(),
    "module in place": lambda x: nn.ReLU(inplace=True)(x + 0),
    "relu": F.relu,
    "torch.relu": torch.relu,
    "relu_": lambda x: (x + 0).relu_(),
    "clamp": lambda x: x.clamp(min=0),
    "clamp_": lambda x: (x + 0).clamp_(0),
    "clamp of a tensor": lambda x: torch.clamp(x, min=torch.zeros(4, dtype=torch.float64)),
    "clamp_min": lambda x: x.clamp_min(0),
    "clip": lambda x: torch.clip(x, 0, 6),
    "relu6": nn.ReLU6(),
    "hardtanh": nn.Hardtanh(0, 6),
    "threshold": nn.Threshold(0, 0),
}
GENERAL = {
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "rrelu": nn.RReLU().eval(),
    "prelu": nn.PReLU(init=-0.2).double().requires_grad_(False),
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "gelu": F.gelu,
    "tanh gelu": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "softplus": F.softplus,
}
NO_RECTIFIERS = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": F.hardtanh,
    "clamp above a little": lambda x: x.clamp(min=1e-6),
    "clamp below": lambda x: x.clamp(max=0.5),
    "threshold with a jump": nn.Threshold(0, 1),
    "max": lambda x: x.max(0, keepdim=True).values.expand(4),
}


def tensor(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def passed_back(rules, function, inputs, gradients):
    """The gradient of `inputs` when that of the function's value is `gradients`."""
    x = tensor(inputs).requires_grad_()
    with OperatorMode(nn.Module(), rules):
        y = function(x)
    assert_close(y, function(x), rtol=1e-15, atol=0)
    return torch.autograd.grad(y, x, tensor(gradients))[0]


@pytest.mark.parametrize("function", RELUS.values(), ids=RELUS)
def test_every_relu_is_a_gate_however_it_is_written(function):
    assert passed_back(Guided(), function, INPUTS, GRADIENTS).tolist() == [0, 0, 3, 0]
    assert passed_back(Deconvnet(), function, INPUTS, GRADIENTS).tolist() == [2, 0, 3, 0]


@pytest.mark.parametrize("function", GENERAL.values(), ids=GENERAL)
def test_other_rectifiers_get_the_generalised_gate(function):
    inputs = [-2.5, -1.5, -0.3, 0.2, 1.5, 1.5, -2.5]  # gelu, silu, mish and hardswish fall at the first and the last
    gradients = [2.0, 1.0, 2.0, 0.5, 3.0, -1.0, -1.0]
    x, step = tensor(inputs), 1e-6
    slope = (function(x + step) - function(x - step)) / (2 * step)
    expected = tensor(gradients).clamp(min=0) * slope.clamp(min=0)
    assert_close(passed_back(Guided(), function, inputs, gradients), expected, rtol=1e-6, atol=1e-9)
    assert passed_back(Deconvnet(), function, inputs, gradients).tolist() == [2, 1, 2, 0.5, 3, 0, 0]


@pytest.mark.parametrize("function", NO_RECTIFIERS.values(), ids=NO_RECTIFIERS)
@pytest.mark.parametrize("kind", [Guided, Deconvnet])
def test_what_is_no_rectifier_keeps_its_plain_gradient(kind, function):
    rules, x = kind(), tensor(INPUTS).requires_grad_()
    (plain,) = torch.autograd.grad(function(x), x, tensor(GRADIENTS))
    assert_close(passed_back(rules, function, INPUTS, GRADIENTS), plain, rtol=1e-15, atol=0)
    assert rules.met == set()


def test_gradients_of_all_uses_are_summed_before_the_gate():
    def twice(x):
        y = F.relu(x)
        return 2 * y - 3 * y

    assert passed_back(Guided(), twice, INPUTS, GRADIENTS).tolist() == [0, 0, 0, 3]


def test_tells_the_published_gate_from_the_generalised_one():
    rules = Guided()
    assert rules.told == ""
    passed_back(rules, nn.ReLU6(), INPUTS, GRADIENTS)
    assert rules.told == "relu"
    passed_back(rules, lambda x: F.silu(F.gelu(x)), INPUTS, GRADIENTS)
    assert rules.told == "relu; generalised gate of gelu, silu"


def test_refuses_an_operator_that_might_be_a_rectifier():
    with pytest.raises(ValueError, match="operator 'erfinv' in the model itself has no rule"):
        passed_back(Guided(), torch.erfinv, [0.1] * 4, GRADIENTS)
