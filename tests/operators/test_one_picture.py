"""Batch norm of one picture: the right gradient, whatever the layout in which it comes back."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_close
from nets import classifier_of, random_input, seeded
from torch import Tensor, nn
from torch.nn import functional

from xai_cli.operators.one_picture import OnePicture


@pytest.mark.parametrize("strides", [(36, 9, 3, 1), (36, 1, 12, 4), (4, 1, 12, 4), (1, 1, 12, 4)])
def test_the_gradient_is_that_of_an_affine_map(strides: tuple[int, ...]) -> None:
    x, back = torch.randn(1, 4, 3, 3, requires_grad=True), torch.randn(36).as_strided((1, 4, 3, 3), strides)
    scale = torch.tensor([1.0, -2.0, 3.0, 0.5])
    with OnePicture():
        out = functional.batch_norm(x, torch.zeros(4), torch.ones(4), scale, eps=0.0)
    (found,) = torch.autograd.grad(out, x, back)
    assert_close(found, back * scale[:, None, None], rtol=1e-6, atol=1e-7)


class Tokens(nn.Module):
    """A batch norm whose gradient comes from tokens: of one picture, in an unusual layout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3, 3)
        nn.init.uniform_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x.sin()).flatten(2).transpose(1, 2).contiguous()).square().mean(1)


def test_a_picture_alone_has_the_gradient_that_it_has_beside_others() -> None:
    classifier, inputs = classifier_of(seeded(Tokens)), random_input(2).requires_grad_()
    together = torch.autograd.grad(classifier.eager_logits(inputs)[:, 1].sum(), inputs)[0]
    for n in range(2):
        alone = torch.autograd.grad(classifier.eager_logits(inputs[n : n + 1])[:, 1].sum(), inputs)[0][n]
        assert_close(alone, together[n], rtol=1e-9, atol=0)
