from __future__ import annotations

import pytest
import torch
from helpers import assert_close
from timm.layers import resample_abs_pos_embed, resample_abs_pos_embed_nhwc
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_simple

from xai_cli.merging.positions import resampled

torch.manual_seed(0)


@pytest.mark.parametrize("new", [5, 11])
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_embeddings_as_timm_does_it(prefix, new):
    positions = torch.randn(1, prefix + 49, 6)
    found = resampled(positions, (1, prefix + new * new, 6), linear=False)
    expected = resample_abs_pos_embed(positions, [new, new], num_prefix_tokens=prefix)
    assert_close(found, expected, rtol=0, atol=1e-6)
    assert torch.equal(found[:, :prefix], positions[:, :prefix])


def test_embeddings_with_a_grid_as_timm_does_it():
    positions = torch.randn(1, 7, 5, 6)
    expected = resample_abs_pos_embed_nhwc(positions, [9, 4])
    assert_close(resampled(positions, (1, 9, 4, 6), linear=False), expected, rtol=0, atol=1e-6)
    found = resampled(positions.permute(0, 3, 1, 2), (1, 6, 9, 4), linear=False)
    assert_close(found.permute(0, 2, 3, 1), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("window", [4, 12])
@pytest.mark.parametrize("extra", [0, 3])
def test_bias_tables_as_timm_does_it(extra, window):
    table, side = torch.randn(13 * 13 + extra, 4), 2 * window - 1
    shape = (side * side + extra, 4)
    expected = resize_rel_pos_bias_table_simple(table, (window, window), shape)
    assert_close(resampled(table, shape, linear=False), expected, rtol=0, atol=1e-6)


def test_bias_tables_with_a_grid_as_timm_does_it():
    table = torch.randn(4, 13, 13)
    expected = resize_rel_pos_bias_table_simple(table, (4, 4), (4, 7, 7))
    assert_close(resampled(table, (4, 7, 7), linear=False), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("old", "new"),
    [((1, 50, 6), (1, 82, 6)), ((1, 50, 6), (1, 17, 6)), ((1, 7, 7, 6), (1, 9, 9, 6)), ((169, 4), (529, 4))],
)
def test_fishers_stay_non_negative_where_bicubic_does_not(old, new):
    spikes = (torch.rand(old) > 0.9).float()
    found = resampled(spikes, new, linear=True)
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-6
    assert resampled(spikes, new, linear=False).min() < 0


def test_a_constant_stays_and_a_ramp_is_halved():
    assert_close(resampled(torch.full((1, 50, 2), 3.0), (1, 101, 2), linear=True), torch.full((1, 101, 2), 3.0),
                 rtol=1e-6, atol=0)  # fmt: skip
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    assert_close(resampled(ramp, (1, 1, 4, 8), linear=True)[0, 0, 0, 2:6], [0.75, 1.25, 1.75, 2.25], rtol=0, atol=1e-6)


def test_keeps_the_type():
    assert resampled(torch.randn(1, 50, 6).bfloat16(), (1, 26, 6), linear=False).dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((1, 197, 6), (1, 196, 6)),  # a class token on one side only
        ((1, 197, 6), (1, 577, 8)),  # another width
        ((1, 48, 6), (1, 63, 6)),  # grids that are not square
        ((4, 6, 3, 3), (4, 6, 5, 5)),  # kernels of a convolution
        ((169, 4), (225, 8)),  # other heads
        ((196, 4), (256, 4)),  # no odd grid
        ((7,), (9,)),
    ],
)
def test_tells_where_no_grid_fits(old, new):
    with pytest.raises(ValueError, match=r"positions of shape \(.*\) cannot be resampled to \(.*\): expected square"):
        resampled(torch.zeros(old), new, linear=False)
