from __future__ import annotations

import pytest
import torch
from helpers import assert_close

from xai_cli.methods.hadamard import balanced_masks


def masks_of(count, seed=0):
    return balanced_masks(count, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [1, 3, 4, 40])
def test_parts_are_there_half_of_the_time_and_uncorrelated(count):
    masks = masks_of(count)
    assert masks.dtype == torch.bool
    assert count < len(masks) <= 2 * count
    signs = 2.0 * masks - 1
    assert not signs.sum(dim=0).any()
    assert torch.equal(signs.T @ signs, len(signs) * torch.eye(count))


def test_each_mask_alone_is_random():
    first = torch.stack([masks_of(4, seed)[0] for seed in range(400)]).float()
    assert_close(first.mean(dim=0), torch.full((4,), 0.5), rtol=0, atol=0.1)
    assert len(first.unique(dim=0)) == 16
