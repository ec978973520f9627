from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import assert_close
from nets import random_input

from xai_cli.operators.strided import StridedInputGradient, input_gradient


@pytest.mark.parametrize("size", [(12, 12), (11, 14), (9, 7)])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(7, 2, 3), (7, 4, 2), (3, 2, 1), (3, 2, 0), (5, 3, 4), (4, 3, 0), (7, 2, 0)]
)
def test_is_the_gradient_of_the_convolution(kernel, stride, padding, size):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 3, kernel, kernel, generator=generator, dtype=torch.float64)
    output = F.conv2d(x, weight, stride=stride, padding=padding)
    gradient = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    [expected] = torch.autograd.grad(output, x, gradient)
    found = input_gradient(gradient, weight, size, stride, (padding, padding))
    assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_takes_over_inside_the_mode_only_and_changes_nothing():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, stride=2, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3))
    net = net.double().requires_grad_(False)
    x = random_input().requires_grad_()
    plain = net(x)
    [expected] = torch.autograd.grad(plain.sum(), x)
    with StridedInputGradient():
        fast = net(x)
    assert torch.equal(fast, plain)
    assert "_StridedConvolution" in names_in_graph(fast)
    assert "_StridedConvolution" not in names_in_graph(net(x))
    assert_close(torch.autograd.grad(fast.sum(), x)[0], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "convolution",
    [
        torch.nn.Conv2d(3, 6, 3, stride=2, groups=3),
        torch.nn.Conv2d(3, 4, 3, stride=2, dilation=2),
        torch.nn.Conv2d(3, 4, 2, stride=2),
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.Conv2d(3, 4, (3, 5), stride=2),
        torch.nn.Conv2d(3, 4, 3, stride=(2, 1)),
        torch.nn.Conv2d(3, 4, 3, padding="same"),
    ],
    ids=["grouped", "dilated", "patches", "stride 1", "oblong", "uneven stride", "same"],
)
def test_leaves_other_convolutions_alone(convolution):
    with StridedInputGradient():
        output = convolution.double().requires_grad_(False)(random_input().requires_grad_())
    assert "_StridedConvolution" not in names_in_graph(output)


def names_in_graph(tensor):
    """The names of all operations behind a tensor, in one text."""
    names, pending = [], [tensor.grad_fn]
    while pending:
        node = pending.pop()
        names.append(type(node).__name__)
        pending += [parent for parent, _ in node.next_functions if parent is not None]
    return " ".join(names)
