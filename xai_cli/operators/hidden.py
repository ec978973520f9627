"""timm's own autograd functions compute what no function mode sees; their layers give way to equals that it sees."""

from __future__ import annotations

from timm.layers import activations_me
from torch import Tensor, nn


class _HardMish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (x + 2).clamp(0, 2)


_SEEN: dict[str, type[nn.Module]] = {
    "SwishMe": nn.SiLU,
    "MishMe": nn.Mish,
    "HardSigmoidMe": nn.Hardsigmoid,
    "HardSwishMe": nn.Hardswish,
    "HardMishMe": _HardMish,
}


def without_autograd_functions(module: nn.Module) -> nn.Module:
    """The same module, changed in place: timm's memory-saving activations in their plain form."""
    plain: dict[type[nn.Module], type[nn.Module]] = {
        getattr(activations_me, name): kind for name, kind in _SEEN.items() if hasattr(activations_me, name)
    }
    for name, layer in list(module.named_modules(remove_duplicate=False)):
        if type(layer) in plain:
            parent, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(parent), attribute, plain[type(layer)]())
    return module
