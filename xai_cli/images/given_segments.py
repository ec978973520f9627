"""The segments that a user gives, a file per picture, as the model sees them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image

from xai_cli.images.decode import Picture
from xai_cli.images.geometry import Preprocessing
from xai_cli.images.segments import MOST, ordered

_MOST_PIXELS = 89_478_485  # as of photos
_NUMBERED = {"1", "L", "P", "I", "I;16", "I;16B"}  # modes whose pixels are numbers: grey, or places of a palette


def given_segments(
    folder: Path, key: str, preprocessing: Preprocessing, size: tuple[int, int] | None = None
) -> tuple[NDArray[np.int32], list[int | str | None]]:
    """The labels `(h, w)` of a picture's segments, from 0 on in the order in which they begin, and their names.

    They are read from `KEY.npy`, whole numbers `(H, W)`, from `KEY.png`, or from the PNG of that name without the
    picture's extension: there each grey, place of the palette or colour is a segment. The file must have the `size`
    (W, H) of the upright photo, or its proportions, as it is resized and cropped like the photo; without `size` that is
    not checked. A segment's name is its number in the file, or `#rrggbb`; that of what lies outside the photo, where
    the model sees padding, is None.

    Raises:
        LookupError: there is no such file.
        ValueError: the key leads out of the folder, or the file holds something else, labels of another shape, or more
            than `MOST` segments.
    """
    path = _found(folder, key)
    found = _array(path) if path.suffix == ".npy" else _png(path)
    if found.ndim != 2 or not found.size or found.dtype.kind not in "biu":
        raise ValueError(
            f"{path} should hold whole numbers (H, W), one for each pixel of the photo, not {found.dtype} {found.shape}"
        )
    if size is not None and not _proportional(found.shape[::-1], size):
        raise ValueError(
            f"{path}: expected {size[1]} x {size[0]} labels (height x width), or that in its proportions, found "
            f"{found.shape[0]} x {found.shape[1]}; turn it as the photo is shown"
        )
    values, places = np.unique(found, return_inverse=True)
    if len(values) > MOST:
        raise ValueError(f"{path} has {len(values)} segments, and at most {MOST} can be told apart; join some")
    # Numbers travel as the bytes of colours through the model's own resize and crop; 0 is what it pads with.
    coded = (places.reshape(found.shape) + 1).astype("<u4").view(np.uint8).reshape(*found.shape, 4)[..., :3]
    nearest = replace(preprocessing, interpolation="nearest", channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    seen, _ = nearest.apply(Picture(np.ascontiguousarray(coded), "PNG", "RGB", 1, 1, ()))
    labels, numbers = ordered(seen.astype(np.int32) @ np.array([1, 2**8, 2**16], np.int32))
    name = "#{:06x}".format if path.suffix == ".png" and found.dtype == np.uint32 else int
    return labels, [name(values[number - 1]) if number else None for number in numbers]


def _found(folder: Path, key: str) -> Path:
    """The file of a picture's segments."""
    if PurePosixPath(key).is_absolute() or ".." in PurePosixPath(key).parts:
        raise ValueError(f"{key!r} leads out of the folder of segments {str(folder)!r}; rename or move the picture")
    names = list(dict.fromkeys((f"{key}.npy", f"{key}.png", f"{os.path.splitext(key)[0]}.png")))
    for name in names:
        path = folder / name
        if os.path.isfile(path):  # False, too, for names longer than the system allows
            if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
                raise ValueError(f"{str(path)!r} leads out of the folder of segments by a link; put a copy there")
            return path
    raise LookupError(
        f"there are no segments for {key!r}: expected one of {', '.join(names)} in {str(folder)!r}, at the place that "
        "the picture has below the folder of pictures; add it, or give xai that folder instead of the picture"
    )


def _proportional(found: tuple[int, ...], size: tuple[int, int]) -> bool:
    """Whether (w, h) has the proportions of (W, H), but for a pixel of the smaller one."""
    return abs(found[0] * size[1] - found[1] * size[0]) <= max(*found, *size)


def _array(path: Path) -> NDArray[Any]:
    with _whole(path, "NPY file of numbers"):
        mapped = npy.open_memmap(path, mode="r")  # not read yet: its header may claim more than it holds
    _refuse_large(path, mapped.size)
    return np.array(mapped)


def _png(path: Path) -> NDArray[Any]:
    """The numbers of a PNG's pixels, of a coloured one uint32 as red, green, blue."""
    with _whole(path, "PNG"):
        image = Image.open(path, formats=["PNG"])
    with image:
        _refuse_large(path, image.width * image.height)
        with _whole(path, "PNG"):
            image.load()
        if image.mode in _NUMBERED:
            return np.asarray(image)
        if image.mode in ("LA", "RGBA") and np.ptp(image.getextrema()[-1]):
            raise ValueError(f"{path}: expected segments in opaque colours, found some transparent; give each a colour")
        return np.asarray(image.convert("RGB")).astype(np.uint32) @ np.array([2**16, 2**8, 1], np.uint32)


@contextmanager
def _whole(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # NumPy parses headers as Python, Pillow raises far more than OSError on damaged files
        raise ValueError(f"{path} is not a whole {kind} ({error}); write it again") from error


def _refuse_large(path: Path, pixels: int) -> None:
    if pixels > _MOST_PIXELS:
        raise ValueError(f"{path}: expected at most {_MOST_PIXELS} labels, found {pixels}; make it smaller")
