from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the usual name
from helpers import assert_close

from xai_cli.operators.secant import secant

# x and start: far apart on both sides of zero, near, equal
X = torch.tensor([2.0, -1.0, 3.0, -2.0, 1.0, 1.0, -1e-20, 0.0], dtype=torch.float64)
START = torch.tensor([-1.0, 2.0, 1.0, -1.0, 1.0 + 1e-13, 1.0, 1e-20, 0.0], dtype=torch.float64)


@pytest.mark.parametrize(
    "function", [F.relu, F.leaky_relu, F.gelu, torch.exp, torch.sigmoid, torch.square, F.hardswish]
)
def test_is_the_quotient_of_changes_or_the_derivative(function):
    y, slope = secant(function, X, START, function.__name__)
    assert torch.equal(y, function(X))
    change = function(X) - function(START)
    assert_close(slope[:4], (change / (X - START))[:4], rtol=1e-12, atol=1e-12)
    at = X[4:].clone().requires_grad_()
    (derivative,) = torch.autograd.grad(function(at).sum(), at)
    assert_close(slope[4:6], derivative[:2], rtol=1e-9, atol=1e-12)
    assert_close(slope * (X - START), change, rtol=1e-12, atol=1e-15)


def test_closed_forms_equal_the_quotient():
    x, start = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for function in (F.relu, F.leaky_relu, torch.square):
        assert_close(secant(function, x, start, function.__name__)[1], secant(function, x, start)[1], rtol=1e-9, atol=0)


def test_is_smooth_where_rounding_would_spoil_the_quotient():
    start = torch.linspace(-1, 1, 1001)
    slope = secant(torch.exp, torch.nextafter(start, torch.tensor(2.0)), start)[1]
    assert_close(slope, start.exp(), rtol=1e-5, atol=0)


def test_trusts_the_quotient_where_the_function_is_steep():
    x, start = torch.tensor([4e-6]), torch.tensor([1e-6])
    assert_close(secant(torch.sqrt, x, start)[1], [1 / 3e-3], rtol=1e-5, atol=0)


def test_is_zero_where_both_are_minus_infinity_and_where_the_derivative_is_infinite():
    infinite = torch.tensor([-float("inf")])
    assert secant(torch.exp, infinite, infinite)[1].tolist() == [0.0]
    assert secant(torch.sqrt, torch.zeros(1), torch.zeros(1))[1].tolist() == [0.0]
