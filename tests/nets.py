"""Nets a few lines long, and the shortest way to a classifier of one, in float64 so that identities hold to
rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xai_cli.classifiers.classifier import Classifier
from xai_cli.images.geometry import Preprocessing


def classifier_of(
    module: nn.Module, size: int = 8, channels: int = 3, dtype: torch.dtype = torch.float64
) -> Classifier:
    """The module as a classifier of `(B, channels, size, size)` inputs, neither folded nor compiled."""
    preprocessing = Preprocessing(
        (size, size), size, "center", "bilinear", (0.5,) * channels, (0.25,) * channels, channels
    )
    module = module.eval().requires_grad_(False).to(dtype)
    return Classifier("test", module, preprocessing, ("a", "b", "c"), torch.device("cpu"), dtype, digest="")


def seeded(make: type[nn.Module] | object, seed: int = 0) -> nn.Module:
    """`make()` with its random weights drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()  # type: ignore[operator]


def linear_net(size: int = 8) -> nn.Module:
    """A linear model of the pixels: logits = W x + b."""
    return seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, 3)))


def conv_net() -> nn.Module:
    """Two convolutions with ReLU, global average pooling, a linear head: what CAM was made for."""
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 3),
        )
    )


class Quadratic(nn.Module):
    """Scores that are quadratic in the pixels: `f_k = sum_i a_ki x_i^2`."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = seeded(lambda: nn.Linear(3 * 8 * 8, 3, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1) ** 2)


def random_input(batch: int = 2, size: int = 8, channels: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    """`(batch, channels, size, size)` standard normal numbers, always the same."""
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype)
