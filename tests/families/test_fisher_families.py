"""Every family of timm: each picture's own gradient of every parameter is what autograd gives for it alone."""

from __future__ import annotations

import pytest
import torch
from families.families import FAMILIES, Family
from helpers import assert_close
from torch import Tensor, nn
from torch.func import functional_call

from xai_cli.operators.per_example import Mixed, PerExample, forgetful

pytestmark = pytest.mark.families

PICTURES = 2
# Its attention over scalars multiplies `(pictures, places)` with its own transpose: what it says of a picture is up to
# the others in the batch.
MIXING = "csatv2"


class _Kept:
    """Each picture's gradient of each parameter, summed over whatever calls gave it."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        self.gradients = {name: each.new_zeros(PICTURES, *each.shape) for name, each in parameters.items()}
        self.times: dict[str, int] = {}

    def factors(self, name: str, inputs: Tensor, outputs: Tensor) -> None:
        self.whole(name, (outputs.transpose(1, 2) @ inputs).reshape_as(self.gradients[name]))

    def whole(self, name: str, gradients: Tensor) -> None:
        first = self.times.get(name, 0)
        self.gradients[name][first : first + len(gradients)] = gradients
        self.times[name] = first + len(gradients)
        assert self.times[name] <= PICTURES


def _followed(family: Family, module: nn.Module, kept: _Kept) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, logits and cotangent of one way back."""
    side, noise = family.side(full=False), torch.Generator().manual_seed(1)
    inputs = torch.randn(PICTURES, 3, side, side, generator=noise, dtype=torch.float64)
    engine = PerExample(dict(module.named_parameters()), PICTURES, kept)
    logits = engine.logits(module, inputs)
    cotangent = torch.randn(logits.shape, generator=noise, dtype=torch.float64)
    engine.back(logits, cotangent)
    return inputs, logits, cotangent


# In float64: what float32 rounds away in a deep net at random weights would hide a small mistake.
@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.name != MIXING], ids=lambda family: family.name
)
def test_each_picture_has_the_gradient_it_has_alone(family: Family) -> None:
    module = family.module().double().eval()
    parameters = dict(module.named_parameters())
    kept = _Kept(parameters)
    inputs, logits, cotangent = _followed(family, module, kept)
    assert_close(logits, module(inputs), rtol=1e-9, atol=1e-9)
    for n in range(PICTURES):
        leaves = {name: each.detach().requires_grad_() for name, each in parameters.items()}
        # A second picture of no weight: torch gives wrong gradients of batch norms for one (with some strides).
        with forgetful(module):
            alone = functional_call(module, leaves, (inputs[[n, n]],))
        wanted = torch.autograd.grad(
            alone[:1], list(leaves.values()), cotangent[n : n + 1], allow_unused=True, materialize_grads=True
        )
        for name, gradient in zip(leaves, wanted, strict=True):
            gap = (kept.gradients[name][n] - gradient).norm()
            assert gap <= 1e-9 * gradient.norm() + 1e-12, f"{name} of picture {n}: {float(gap / gradient.norm()):.2g}"


def test_a_family_that_looks_from_one_picture_to_another_is_refused() -> None:
    (family,) = (family for family in FAMILIES if family.name == MIXING)
    module = family.module().double().eval()
    with pytest.raises(Mixed, match="linear does not keep the pictures apart"):
        _followed(family, module, _Kept(dict(module.named_parameters())))
