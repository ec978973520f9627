"""Relevance becomes colour: a colour limit, palette indices, the palette itself, and how strong each index is.

Everything here is pure NumPy. A map of relevance `(h, w)` is quantised to 8-bit palette indices, so that a picture of
the indices is itself data. A signed map is centred: zero is index 127, whatever the limit, and has its own colour.

The colour maps are perceptually uniform and safe for colour-blind readers: CET-D1 (Kovesi, 2015) for signed maps, blue
below and red above a near-white zero, with ends bright enough to be red and blue on a dark photo; inferno (van der Walt
and Smith, 2015) for unsigned maps.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

ZERO = 127
"""The palette index of zero relevance in a signed map."""


def colour_limit(relevance: NDArray[np.float32], percentile: float = 97.0) -> float:
    """Return the absolute value that gets the strongest colour: a percentile of `|relevance|`, always above zero.

    A percentile rather than the maximum, because a single extreme pixel would leave the rest of the map without colour.
    A map so sparse that its percentile is zero takes its maximum; a map of zeros gets 1.0.

    Raises:
        ValueError: if the map holds NaN or infinity, or the percentile is outside 0 to 100.
    """
    _require_finite(relevance)
    magnitude = np.abs(relevance).ravel()
    # Sorting all would take as long as drawing: a sample tells what surely lies below, and the rest is enough.
    sample = np.sort(magnitude[::16])
    strong = magnitude[magnitude >= sample[int(np.clip(percentile / 100 - 0.03, 0, 1) * (sample.size - 1))]]
    above = (magnitude.size - 1) * (1 - percentile / 100)
    if strong.size > above + 1:
        magnitude, percentile = strong, 100 - 100 * above / (strong.size - 1)
    return float(np.percentile(magnitude, percentile)) or float(magnitude.max()) or 1.0


def quantise(relevance: NDArray[np.float32], *, signed: bool, limit: float) -> NDArray[np.uint8]:
    """Return palette indices `(h, w)` of a map, everything beyond the limit taking the strongest colour.

    Signed: -limit, 0, limit become 0, 127, 254. Unsigned: 0, limit become 0, 255, and negative values become 0.

    Raises:
        ValueError: if the limit is not a positive finite number, or the map holds NaN or infinity.
    """
    _require_finite(relevance)
    if not 0 < np.float32(limit) < np.inf:
        raise ValueError(f"the colour limit must be a positive finite number, got {limit}")
    # Clipped before it is divided: a tiny limit then cannot overflow.
    share = np.clip(relevance, -limit if signed else 0.0, limit) / np.float32(limit)
    indices: NDArray[np.uint8] = np.rint(share * 127 + ZERO if signed else share * 255).astype(np.uint8)
    return indices


@lru_cache(maxsize=2)
def palette(signed: bool) -> NDArray[np.uint8]:
    """Return the colours `(256, 3)` of the palette indices; read-only.

    Signed: blue, near-white at 127, red at 254 and 255. Unsigned: black, purple, orange, pale yellow.
    """
    from cmap import Colormap  # imported here because it costs more than the whole of `xai --help`

    positions = np.minimum(np.arange(256) / (254 if signed else 255), 1)
    table = Colormap("colorcet:CET_D1" if signed else "bids:inferno")(positions)
    colours: NDArray[np.uint8] = np.rint(table[:, :3] * 255).astype(np.uint8)
    colours.flags.writeable = False
    return colours


def strength(indices: NDArray[np.uint8], signed: bool) -> NDArray[np.float32]:
    """Return how far from zero relevance each palette index is, 0 to 1, in the shape of `indices`."""
    values = indices.astype(np.float32)
    distances: NDArray[np.float32] = (
        np.abs(values - np.float32(ZERO)) / np.float32(127) if signed else values / np.float32(255)
    )
    return np.minimum(distances, 1)


def _require_finite(relevance: NDArray[np.float32]) -> None:
    found = np.count_nonzero(~np.isfinite(relevance))
    if found:
        raise ValueError(f"a map must be finite to be drawn, but {found} of its {relevance.size} values are not")
