"""A picture falls into regions of like colour."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_SIDE = 224  # what the scales and the smallest region are made for, whatever the picture's own size
_SMALLEST = 150  # pixels of a region there


def felzenszwalb(pixels: NDArray[np.uint8], scales: Sequence[float]) -> list[NDArray[np.uint16]]:
    """The regions of a picture `(h, w, C)` at each scale, larger ones at larger scales: labels `(h, w)` from 0 on.

    The picture's range of colours is stretched to -1..1 and its sides to 224, as XRAI does; a picture of one colour is
    one region. Felzenszwalb, Huttenlocher: Efficient Graph-Based Image Segmentation, 2004
    (doi:10.1023/B:VISI.0000022288.19776.77).
    """
    # Each pixel takes the label of the place where its centre lies.
    rows, columns = ((np.arange(side) + 0.5) * _SIDE // side for side in pixels.shape[:2])
    places = np.ix_(rows.astype(int), columns.astype(int))
    return [labels[places] for labels in _square_labels(pixels.tobytes(), pixels.shape, tuple(scales))]


@lru_cache(maxsize=64)  # a batch is segmented once for all targets and methods
def _square_labels(pixels: bytes, shape: tuple[int, ...], scales: tuple[float, ...]) -> list[NDArray[np.uint16]]:
    # Two seconds and 180 MB that only methods with regions need.
    from skimage.segmentation import felzenszwalb as labelled
    from skimage.transform import resize

    picture = np.frombuffer(pixels, np.uint8).reshape(shape).astype(np.float64)
    darkest, span = picture.min(), np.ptp(picture) or 1.0
    square = resize(2 * (picture - darkest) / span - 1, (_SIDE, _SIDE), order=3, anti_aliasing=True)
    regions = (labelled(square, scale=scale, sigma=0.8, min_size=_SMALLEST) for scale in scales)
    return [labels.astype(np.uint16) for labels in regions]


def dilated(labels: NDArray[np.integer], radius: int) -> NDArray[np.bool_]:
    """Masks `(h, w, K)` of K regions, each grown by all pixels within `radius` of it, so that they overlap."""
    height, width = labels.shape
    masks = labels[:, :, None] == np.arange(labels.max() + 1)
    y, x = np.nonzero(_at_border(labels))
    owners = labels[y, x]
    reach = range(-radius, radius + 1)
    for down, right in ((i, j) for i in reach for j in reach if i * i + j * j <= radius * radius):
        # A place beyond the picture moves to its edge, which is nearer.
        masks[(y + down).clip(0, height - 1), (x + right).clip(0, width - 1), owners] = True
    return masks


def _at_border(labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Which pixels have one of another region above, below, to the left or to the right."""
    border = np.zeros(labels.shape, np.bool_)
    below, beside = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    border[1:] |= below
    border[:-1] |= below
    border[:, 1:] |= beside
    border[:, :-1] |= beside
    return border
