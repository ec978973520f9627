"""A map becomes a picture: alone as a heatmap, or registered on the untouched photo as an overlay.

In an overlay every colour is relevance: the photo below is grey, and shows through least where relevance is strongest.
What the model never saw (it lies outside `geometry.seen`) is darkened and hatched, with a line at the border. A map of
segments has crisp colours, and thin pale lines where its value changes.
"""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache
from io import BytesIO
from math import ceil, floor

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from PIL import Image

from xai_cli.heatmaps import colour_limit, palette, quantise, strength
from xai_cli.images.geometry import Geometry

Edges = tuple[float, float, float, float]
Pixels = tuple[int, int, int, int]

STRONGEST_OPACITY = 0.8  # more would hide what the photo shows there

# Middle tones: both ends of a palette, near-white and black, differ from every grey of the photo.
SEEN_TONES = 50 + np.arange(256) * 165 // 255
UNSEEN_STEP, UNSEEN_TONE = 20, 8  # 13 levels, never above the hatch: dark, and cheap to compress
HATCH_TONE = 96
LINE_OPACITY = 0.5  # of the lines between segments: so many may there be that they would cover the photo
COLOUR_STEP = 3  # the colours are multiples of it, a level off at most, and the files a fifth smaller


def draw(
    photo: NDArray[np.uint8],
    relevance: NDArray[np.float32],
    geometry: Geometry,
    *,
    signed: bool,
    render: str,
    percentile: float = 97.0,
    limit: float | None = None,
    outlined: bool = False,
) -> Image.Image:
    """Return the picture of one map `(h, w)`.

    - `heatmap`: the map at its own resolution, mode `P`; a pixel's value is its quantised relevance.
    - `overlay`: the map over the photo, RGB, in the photo's size.
    - `side-by-side`: the untouched photo, a gap, the overlay.

    `photo` is uint8 `(H, W, 3)`, upright: the original or a reduced copy of it. Without `limit` the strongest colour is
    given to the map's own `percentile`. In an `outlined` overlay lines part what has different relevance.

    Raises:
        ValueError: if the map holds NaN or infinity, is not of the geometry's size, or there is no such render.
    """
    if relevance.shape != geometry.map[::-1]:
        raise ValueError(f"expected a map of the model's input, {geometry.map[::-1]}, got one of {relevance.shape}")
    if limit is None:
        limit = colour_limit(relevance, percentile)
    indices = quantise(relevance, signed=signed, limit=limit)
    if render == "heatmap":
        heatmap = Image.fromarray(indices)
        heatmap.putpalette(palette(signed).tobytes())
        return heatmap
    if render not in ("overlay", "side-by-side"):
        raise ValueError(f"a picture is drawn as overlay, heatmap or side-by-side, not as {render!r}")
    overlay = _overlay(photo, indices, geometry, signed, relevance if outlined else None)
    return overlay if render == "overlay" else _beside(Image.fromarray(photo), overlay)


def display_copy(pixels: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    """Return the photo `(H, W, 3)` reduced, antialiased, to at most `longest` pixels on its longer side."""
    height, width = pixels.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return pixels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0))


def encode_png(image: Image.Image) -> bytes:
    """Return the PNG file of an image in mode `RGB` or `P`: the same bytes for the same pixels, without time stamps."""
    if image.mode == "RGB":
        return _rgb_png(np.asarray(image))
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _overlay(
    photo: NDArray[np.uint8],
    indices: NDArray[np.uint8],
    geometry: Geometry,
    signed: bool,
    outlined: NDArray[np.float32] | None,
) -> Image.Image:
    """Return the overlay, made of whole pixels as 4 bytes: red, green, blue, one to spare."""
    grey = np.asarray(Image.fromarray(photo).convert("L"))
    height, width = grey.shape
    scale = width / geometry.original[0], height / geometry.original[1]  # below 1 for a reduced copy
    x0, y0, x1, y1 = part = _pixels_touched(geometry.seen, scale, width, height)
    line = max(1, max(width, height) // 500)
    picture = _unseen(grey, line)
    picture[max(0, y0 - line) : y1 + line, max(0, x0 - line) : x1 + line] = 0xFFFFFFFF  # a white border, once filled
    edges = _edges_on_map(geometry, scale, part)
    if outlined is None:
        layer = np.asarray(_interpolated(indices, edges, (x1 - x0, y1 - y0)))
    else:
        rows, columns = _nearest(geometry.map, edges, (x1 - x0, y1 - y0))
        layer = indices[np.ix_(rows, columns)]
    picture[y0:y1, x0:x1] = _colours(signed).take(layer * np.uint16(256) + grey[y0:y1, x0:x1])
    if outlined is not None:
        seen = picture.view(np.uint8).reshape(height, width, 4)[y0:y1, x0:x1]
        borders = _borders(outlined, rows, columns, line)
        seen[borders] = np.rint((1 - LINE_OPACITY) * seen[borders] + LINE_OPACITY * 255)
    return Image.frombytes("RGB", (width, height), picture, "raw", "RGBX")


def _pixels_touched(seen: Edges, scale: tuple[float, float], width: int, height: int) -> Pixels:
    """Return the box of the pixels inside the picture that the model saw at least in part."""
    # Rounded, so that an edge at 62.99999999 is not a pixel more.
    x0, y0, x1, y1 = (round(edge * scale[axis % 2], 6) for axis, edge in enumerate(seen))
    return max(0, floor(x0)), max(0, floor(y0)), min(width, ceil(x1)), min(height, ceil(y1))


def _unseen(grey: NDArray[np.uint8], line: int) -> NDArray[np.uint32]:
    """Return the pixels of the photo darkened and hatched, with lines so wide."""
    height, width = grey.shape
    stripe = np.where(np.arange(width + height) % (10 * line) < line, HATCH_TONE, 0).astype(np.uint8)
    diagonals = np.lib.stride_tricks.sliding_window_view(stripe, width)[:height]
    return np.maximum(grey // UNSEEN_STEP * UNSEEN_TONE, diagonals) * np.uint32(0x01010101)


def _edges_on_map(geometry: Geometry, scale: tuple[float, float], part: Pixels) -> Edges:
    """Return where on the map the pixels `part` lie."""
    x0, y0, x1, y1 = part
    return *geometry.to_map(x0 / scale[0], y0 / scale[1]), *geometry.to_map(x1 / scale[0], y1 / scale[1])


def _interpolated(indices: NDArray[np.uint8], edges: Edges, size: tuple[int, int]) -> Image.Image:
    """Return the part of the map inside `edges`, as so many pixels.

    The indices are interpolated instead of the relevance: quantising is linear up to the limit, and bytes are faster.
    """
    left, top, right, bottom = edges
    height, width = indices.shape
    # A pixel seen in part reaches over the map's edge, where Pillow refuses to read: repeat the edge. By no more than
    # the map's size, for where the whole map is a fraction of a pixel wide (a panorama) it would reach very far.
    reach = ceil(max(0, -left, -top, right - width, bottom - height))
    margin = min(reach, max(width, height))
    padded = Image.fromarray(np.pad(indices, margin, mode="edge"))
    start = max(0, left + margin), max(0, top + margin)
    box = *start, min(padded.width, right + margin), min(padded.height, bottom + margin)
    return padded.resize(size, Image.Resampling.BILINEAR, box=box)


def _nearest(shape: tuple[int, int], edges: Edges, size: tuple[int, int]) -> list[NDArray[np.intp]]:
    """Return the row, and the column, of a map of that `shape` in which the centre of each of `size` pixels lies."""
    places = []
    for axis in (1, 0):
        start, end = edges[axis], edges[axis + 2]
        centres = start + (np.arange(size[axis]) + 0.5) * (end - start) / size[axis]
        places.append(np.floor(centres).clip(0, shape[axis] - 1).astype(np.intp))
    return places


def _borders(
    relevance: NDArray[np.float32], rows: NDArray[np.intp], columns: NDArray[np.intp], line: int
) -> NDArray[np.bool_]:
    """Return which pixels are on a line, so wide, between places of different value."""

    def beside(places: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        each = np.arange(len(places))
        return places[np.maximum(each - (line + 1) // 2, 0)], places[np.minimum(each + line // 2, len(each) - 1)]

    (above, below), (left, right) = beside(rows), beside(columns)
    upright = relevance[np.ix_(rows, left)] != relevance[np.ix_(rows, right)]
    level = relevance[np.ix_(above, columns)] != relevance[np.ix_(below, columns)]
    return upright | level


@lru_cache(maxsize=2)
def _colours(signed: bool) -> NDArray[np.uint32]:
    """Return the pixel `(256 * 256,)` of every palette index on every grey; zero relevance is transparent."""
    opacity = strength(np.arange(256, dtype=np.uint8), signed) * STRONGEST_OPACITY
    if signed:
        # Its colours pale towards zero by themselves; fading them as much again would hide all but the extremes.
        opacity = np.sqrt(opacity * STRONGEST_OPACITY)
    share = np.rint(opacity * 255)[:, np.newaxis, np.newaxis] / 255
    mixed = np.rint(share * palette(signed)[:, np.newaxis] + (1 - share) * SEEN_TONES[:, np.newaxis])
    colours = np.zeros((256, 256, 4), np.uint8)
    colours[..., :3] = np.rint(mixed / COLOUR_STEP) * COLOUR_STEP
    return colours.view(np.uint32).ravel()


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    gap = max(4, left.width // 50)
    picture = Image.new("RGB", (left.width + gap + right.width, left.height), "white")
    picture.paste(left, (0, 0))
    picture.paste(right, (left.width + gap, 0))
    return picture


def _rgb_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return an RGB PNG with the filter `up` for every row, in a fifth of the time of Pillow's level 1.

    Format: https://www.w3.org/TR/png-3/.
    """
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, width * 3)
    filtered = np.empty((height, 1 + width * 3), np.uint8)
    filtered[:, 0] = 2
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", isal_zlib.compress(filtered, 1)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
        for kind, data in chunks
    )
