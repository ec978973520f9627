"""A picture falls into regions of like colour, or into the cells of a grid."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Kind = Literal["slic", "quickshift", "felzenszwalb", "grid"]

MOST = 4096
"""The most segments of a picture."""

_SIDE = 224  # what the scales and the smallest region are made for, whatever the picture's own size
_SMALLEST = 150  # pixels of a region there


def felzenszwalb(pixels: NDArray[np.uint8], scales: Sequence[float]) -> list[NDArray[np.uint16]]:
    """The regions of a picture `(h, w, C)` at each scale, larger ones at larger scales: labels `(h, w)` from 0 on.

    The picture's range of colours is stretched to -1..1 and its sides to 224, as XRAI does; a picture of one colour is
    one region. Felzenszwalb, Huttenlocher: Efficient Graph-Based Image Segmentation, 2004
    (doi:10.1023/B:VISI.0000022288.19776.77).
    """
    squares = _square_labels(pixels.tobytes(), pixels.shape, tuple(scales))
    return [_stretched(labels, *pixels.shape[:2]) for labels in squares]


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


def segmented(pixels: NDArray[np.uint8], kind: Kind, count: int) -> NDArray[np.int32]:
    """A picture `(h, w, C)` in about `count` segments: labels `(h, w)` from 0 on, in the order in which they begin.

    The number follows `count` whatever the picture's size, as near as each kind comes, up to `MOST`: for 50, a grid has
    49 in a square, and in photos slic finds about 40 to 50, quickshift (never more than some hundreds) 40 to 85,
    felzenszwalb 25 to 65.

    Achanta et al.: SLIC Superpixels, 2012 (doi:10.1109/TPAMI.2012.120). Vedaldi, Soatto: Quick Shift, 2008
    (doi:10.1007/978-3-540-88693-8_52).
    """
    return _labels(pixels.tobytes(), pixels.shape, kind, count).copy()


@lru_cache(maxsize=64)  # as for `_square_labels`
def _labels(pixels: bytes, shape: tuple[int, ...], kind: Kind, count: int) -> NDArray[np.int32]:
    picture = np.broadcast_to(np.frombuffer(pixels, np.uint8).reshape(shape), (*shape[:2], 3))  # grey is a colour, too
    cut = {"slic": _slic, "quickshift": _quickshift, "felzenszwalb": _felzenszwalb, "grid": _grid}[kind]
    labels = ordered(_stretched(cut(picture, count), shape[0], shape[1]))[0]
    return labels if labels.max() < MOST else _labels(pixels, shape, kind, 7 * count // 8)


def _slic(picture: NDArray[np.uint8], count: int) -> NDArray[np.integer]:
    """SLIC begins with a grid and loses pieces: where more than a quarter is missing, so many more are asked for."""
    from skimage.segmentation import slic

    asked = count
    for _ in range(3):
        labels: NDArray[np.integer] = slic(picture, asked, compactness=10, max_num_iter=10, sigma=1, start_label=0)
        missing = count - int(labels.max() + 1)
        if 4 * missing <= count or asked == MOST:
            break
        asked = min(asked + missing, MOST)
    return labels


def _quickshift(picture: NDArray[np.uint8], count: int) -> NDArray[np.integer]:
    """LIME's kernel of 4 pixels and weight of colours find 32 segments in 224 x 224: one in 1568 pixels."""
    from skimage.segmentation import quickshift

    # The time grows with area and kernel, so the picture is made smaller before the kernel would be larger.
    area = min(_SIDE**2, 1568 * count)
    kernel = max(1.0, 4 * (area / (1568 * count)) ** 0.5)
    labels: NDArray[np.integer] = quickshift(
        _of_area(picture, area), kernel_size=kernel, max_dist=200, ratio=0.2, rng=0
    )
    return labels


def _felzenszwalb(picture: NDArray[np.uint8], count: int) -> NDArray[np.integer]:
    """Regions of at least a fifth of the mean size, more alike where the picture has too few of them."""
    from skimage.segmentation import felzenszwalb

    square, mean = _of_area(picture, _SIDE**2), _SIDE**2 / count
    least = max(6, round(mean / 5))  # of fewer pixels there would be twice as many as asked for
    for divisor in (20, 80, 320):  # the first is right for most photos
        labels: NDArray[np.integer] = felzenszwalb(square, scale=mean / divisor, sigma=0.8, min_size=least)
        if 2 * int(labels.max() + 1) >= count:
            break
    return labels


def ordered(labels: NDArray[Any]) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """The labels `(h, w)` numbered from 0 on, in the order in which they begin, and what each number stands for."""
    values, first, places = np.unique(labels, return_index=True, return_inverse=True)
    order = first.argsort()
    return order.argsort().astype(np.int32)[places.reshape(labels.shape)], values[order]


def _grid(picture: NDArray[np.uint8], count: int) -> NDArray[np.int32]:
    """As many cells as near `count` as nearly square ones allow, all of one size but for a pixel."""
    height, width = picture.shape[:2]
    rows = min(max(1, round((count * height / width) ** 0.5)), count, height)
    columns = min(max(1, round(count / rows)), width)
    down = np.arange(height, dtype=np.int32) * rows // height
    right = np.arange(width, dtype=np.int32) * columns // width
    return down[:, None] * columns + right


def _of_area(picture: NDArray[np.uint8], area: int) -> NDArray[np.uint8]:
    """The picture with so many pixels, its sides in the same proportion."""
    height, width = picture.shape[:2]
    scale = (area / (height * width)) ** 0.5
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def _stretched(labels: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """The labels in another size: each pixel takes the label of the place where its centre lies."""
    rows, columns = (
        ((np.arange(side) + 0.5) * places // side).astype(int)
        for side, places in zip((height, width), labels.shape, strict=True)
    )
    return labels[np.ix_(rows, columns)]


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
