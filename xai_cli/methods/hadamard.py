"""Random masks that are balanced among themselves: rows of a Hadamard matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor


def balanced_masks(count: int, generator: Generator) -> Tensor:
    """Masks `(m, count)` of truth values in which each of `count` parts is there as often as not, and any two are there
    in all four combinations equally often; m is the least power of two above `count`.

    Alone, each mask is as random as one that is drawn part by part. Plackett, Burman: The Design of Optimum
    Multifactorial Experiments, 1946 (doi:10.1093/biomet/33.4.305).
    """
    import torch

    bits = torch.arange(count.bit_length())
    size = 1 << len(bits)
    rows = torch.randperm(size, generator=generator)
    columns = 1 + torch.randperm(size - 1, generator=generator)[:count]  # the first, all ones, is balanced with none
    signs = torch.randint(2, (count,), generator=generator)
    # The sign of a Sylvester-Hadamard matrix is the parity of the bits that row and column have in common.
    shared = (rows[:, None] >> bits & 1).float() @ (columns[:, None] >> bits & 1).float().T
    return (shared + signs) % 2 == 1
