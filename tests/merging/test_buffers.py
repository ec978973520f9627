from __future__ import annotations

import torch
from helpers import assert_close

from xai_cli.merging.buffers import all_equal, largest, mean_beside, mixture_variance


def test_the_variance_of_a_mixture_is_that_of_all_activations_together() -> None:
    draw = torch.Generator().manual_seed(0)
    first = torch.randn(30, 4, generator=draw, dtype=torch.float64) + 100
    second = torch.randn(10, 4, generator=draw, dtype=torch.float64) * 3
    means, variances = ([f(each, 0) for each in (first, second)] for f in (torch.mean, lambda x, d: x.var(d, False)))
    expected = torch.cat([first, second]).var(0, unbiased=False)
    assert_close(mixture_variance(means, variances, [0.75, 0.25]), expected, rtol=1e-12, atol=0)


def test_equal_statistics_stay_and_no_variance_is_negative() -> None:
    mean, variance = torch.tensor([1e4, -3.3]), torch.tensor([0.0, 0.7])
    assert torch.equal(mixture_variance([mean] * 3, [variance] * 3, [0.1, 0.7, 0.2]).float(), variance)
    assert (mixture_variance([mean, mean + 1e-3], [variance * 0] * 2, [0.5, 0.5]) >= 0).all()


def test_counters_keep_the_largest_and_tables_must_be_the_same() -> None:
    found = largest([torch.tensor(7, dtype=torch.int32), torch.tensor(2**40)])
    assert found.dtype == torch.int64
    assert found == 2**40
    assert all_equal([torch.tensor([0, 1]), torch.tensor([0, 1], dtype=torch.int32), torch.tensor([False, True])])
    assert not all_equal([torch.tensor([0, 1]), torch.tensor([0, 2])])
    large = torch.tensor([2**63], dtype=torch.uint64)
    assert all_equal([large, large.clone()])
    assert not all_equal([large, torch.tensor([-(2**63)])])
    assert mean_beside("bn.running_var") == "bn.running_mean"
