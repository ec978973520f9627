from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from xai_cli.heatmaps import colour_limit, palette, quantise, strength


def test_limit_is_the_percentile_of_the_magnitude() -> None:
    relevance = np.arange(-1000, 1, dtype=np.float32).reshape(7, 143)
    assert colour_limit(relevance, 99.5) == pytest.approx(995)
    assert colour_limit(relevance, 100) == 1000


@pytest.mark.parametrize("size", [1, 2, 17, 40, 1000, 50176])
@pytest.mark.parametrize("percentile", [0, 1, 50, 97, 99.9, 100])
def test_limit_is_the_percentile_of_numpy(size: int, percentile: float) -> None:
    generator = np.random.default_rng(size)
    ascending = np.sort(np.abs(generator.standard_normal(size).astype(np.float32)))
    sampled_at_its_peaks = np.where(np.arange(size) % 16, ascending, 9).astype(np.float32)
    for relevance in (ascending, -ascending[::-1], ascending**9, np.round(ascending) + 1, sampled_at_its_peaks):
        expected = np.percentile(np.abs(relevance), percentile)
        assert colour_limit(relevance.reshape(1, -1), percentile) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("percentile", [-1, 101])
def test_limit_refuses_an_impossible_percentile(percentile: float) -> None:
    with pytest.raises(ValueError, match="Percentiles must be in the range"):
        colour_limit(np.ones((30, 30), np.float32), percentile)


@pytest.mark.parametrize(("values", "limit"), [([0.0] * 1000, 1.0), ([0.0] * 999 + [-3.0], 3.0), ([2.5] * 9, 2.5)])
def test_limit_of_flat_and_sparse_maps_is_above_zero(values: list[float], limit: float) -> None:
    assert colour_limit(np.array([values], np.float32)) == limit


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_limit_refuses_what_is_not_finite(value: float) -> None:
    with pytest.raises(ValueError, match="must be finite to be drawn, but 1 of its 4 values"):
        colour_limit(np.array([[0, 1], [2, value]], np.float32))


def test_indices_of_a_signed_map() -> None:
    relevance = np.array([[-9, -2, -1, -1e-30, 0, 1, 2, 9]], np.float32)
    assert quantise(relevance, signed=True, limit=2.0).tolist() == [[0, 0, 64, 127, 127, 190, 254, 254]]


def test_indices_of_an_unsigned_map() -> None:
    relevance = np.array([[-9, 0, 0.5, 1, 2, 9]], np.float32)
    assert quantise(relevance, signed=False, limit=2.0).tolist() == [[0, 0, 64, 128, 255, 255]]


def test_a_negated_map_has_mirrored_indices() -> None:
    relevance = np.random.default_rng(0).standard_normal((50, 50)).astype(np.float32)
    indices, negated = (quantise(sign * relevance, signed=True, limit=2.0).astype(int) for sign in (1, -1))
    np.testing.assert_array_equal(indices + negated, 254)


@pytest.mark.filterwarnings("error")
def test_extreme_values_neither_overflow_nor_vanish() -> None:
    relevance = np.array([[-3e38, 0, 1e-45, 3e38]], np.float32)
    assert quantise(relevance, signed=True, limit=1e-45).tolist() == [[0, 127, 254, 254]]
    assert quantise(relevance, signed=True, limit=3e38).tolist() == [[0, 127, 127, 254]]


@pytest.mark.parametrize("limit", [0.0, -1.0, np.nan, np.inf])
def test_a_useless_limit_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match="must be a positive finite number"):
        quantise(np.zeros((2, 2), np.float32), signed=True, limit=limit)


def test_signed_palette_is_blue_white_red() -> None:
    colours = palette(True).astype(int)
    assert colours.shape == (256, 3)
    assert colours[127].min() >= 225
    assert np.ptp(colours[127]) <= 8
    assert colours[0, 2] > colours[0, 0] + 100
    assert colours[254, 0] > colours[254, 2] + 100
    assert (colours[255] == colours[254]).all()


def test_unsigned_palette_grows_lighter_from_black() -> None:
    lightness = palette(False) @ np.array([0.2126, 0.7152, 0.0722])
    assert lightness[0] < 5
    assert lightness[255] > 230
    assert (np.diff(lightness) > -1).all()


def test_strength_is_the_distance_from_zero() -> None:
    indices = np.array([[0, 127, 254, 255]], np.uint8)
    assert strength(indices, signed=True).tolist() == [[1, 0, 1, 1]]
    np.testing.assert_allclose(strength(indices, signed=False), [[0, 127 / 255, 254 / 255, 1]], rtol=1e-6)


def test_importing_brings_in_neither_torch_nor_cmap() -> None:
    modules = "heatmaps, xai_cli.outputs." + ", xai_cli.outputs.".join(["pictures", "files", "manifest", "overview"])
    code = f"import sys, xai_cli.{modules}; print({{'torch', 'timm', 'torchvision', 'cmap'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
