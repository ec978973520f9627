"""Every spelling of an operator has one name, and what works in place is known."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from xai_cli.operators.names import is_in_place, operator_name, usual_call


class Spelled(TorchFunctionMode):
    """Notes the last call that takes a tensor of the test's."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.last = operator_name(function), is_in_place(function, kwargs or {})
        return function(*args, **(kwargs or {}))


SPELLINGS = {
    "add": [lambda x: torch.add(x, x), lambda x: x + x, lambda x: x.add(1), lambda x: 1 + x],
    "sub": [lambda x: torch.sub(x, x), lambda x: x - 1, lambda x: torch.subtract(x, x)],
    "rsub": [lambda x: 1 - x, lambda x: torch.rsub(x, 1)],
    "mul": [lambda x: x * 2, lambda x: 2 * x, lambda x: torch.multiply(x, x)],
    "div": [lambda x: x / 2, lambda x: x.true_divide(2), lambda x: torch.divide(x, x)],
    "rdiv": [lambda x: 1 / x],
    "pow": [lambda x: x**2, lambda x: torch.pow(x, 2)],
    "rpow": [lambda x: 2**x],
    "matmul": [lambda x: x @ x, lambda x: torch.matmul(x, x)],
    "neg": [lambda x: -x, torch.negative],
    "relu": [F.relu, torch.relu, lambda x: x.relu()],
    "sigmoid": [F.sigmoid, torch.sigmoid, torch.special.expit],
    "clamp": [lambda x: x.clip(0, 1), lambda x: torch.clamp(x, 0)],
    "transpose": [lambda x: x.swapaxes(0, 1), lambda x: x.swapdims(0, 1), lambda x: x.transpose(0, 1)],
    "movedim": [lambda x: x.moveaxis(0, 1)],
    "cat": [lambda x: torch.concat([x, x]), lambda x: torch.concatenate([x, x])],
    "T": [lambda x: x.T],
    "getitem": [lambda x: x[0]],
    "softmax": [lambda x: x.softmax(-1), lambda x: F.softmax(x, -1), lambda x: torch.special.softmax(x, -1)],
    "logsigmoid": [F.logsigmoid],
    "abs": [abs, torch.absolute],
}

IN_PLACE = {
    "add": [lambda x: x.add_(1), lambda x: operator.iadd(x, x)],
    "sub": [lambda x: operator.isub(x, 1)],
    "mul": [lambda x: operator.imul(x, 2)],
    "div": [lambda x: operator.itruediv(x, 2)],
    "pow": [lambda x: operator.ipow(x, 2)],
    "relu": [F.relu_, torch.relu_, lambda x: x.relu_(), lambda x: F.relu(x, inplace=True), lambda x: F.relu(x, True)],
    "hardtanh": [lambda x: F.hardtanh(x, 0, 1, True)],
    "leaky_relu": [lambda x: F.leaky_relu(x, 0.1, True)],
    "setitem": [lambda x: operator.setitem(x, 0, 1)],
    "masked_fill": [lambda x: x.masked_fill_(x > 0, 0)],
}


def cases(table):
    return [pytest.param(name, call, id=f"{name}-{i}") for name in table for i, call in enumerate(table[name])]


@pytest.mark.parametrize(("name", "call"), cases(SPELLINGS))
def test_a_spelling_has_the_operators_name_and_is_not_in_place(name, call):
    with Spelled() as spelled:
        call(torch.rand(3, 3))
    assert spelled.last == (name, False)


@pytest.mark.parametrize(("name", "call"), cases(IN_PLACE))
def test_work_in_place_is_known(name, call):
    with Spelled() as spelled:
        call(torch.rand(3, 3))
    assert spelled.last == (name, True)


@pytest.mark.parametrize("function", [torch.Tensor.__invert__, torch.Tensor.__index__, torch.Tensor.requires_grad_])
def test_what_only_looks_like_in_place_is_not(function):
    assert not is_in_place(function, {})


def test_operands_by_name_and_numpys_names_are_brought_to_their_places():
    assert usual_call((), {"input": 1, "other": 2, "alpha": 3}) == ((1, 2), {"alpha": 3})
    assert usual_call((1,), {"axis": 0, "keepdims": True}) == ((1,), {"dim": 0, "keepdim": True})
    assert usual_call((1, 2), {"other": 3}) == ((1, 2), {"other": 3})
