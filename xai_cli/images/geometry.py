"""The model's own resize and crop, byte for byte as timm and torchvision do them, and the way back to the photo."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xai_cli.images.decode import Picture

CropMode = Literal["center", "squash", "border"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]

# A resized picture above this many pixels (20000 x 1 with its short side at 256: 1.3e9) is never made as a whole.
_WHOLE = 2**26


@dataclass(frozen=True)
class Geometry:
    """Where in the photo the model's input lies.

    `original` (W, H) of the upright photo in pixels; `seen` (x0, y0, x1, y1) the part of it that the input shows, which
    sticks out of the photo where the input is padding; `map` (w, h) of the input; `exif` the orientation that was
    undone. Coordinates are continuous and count pixel edges: the photo covers 0..W, its first pixel's centre is at 0.5.
    """

    original: tuple[int, int]
    seen: tuple[float, float, float, float]
    map: tuple[int, int]
    exif: int = 1

    def to_map(self, x: float, y: float) -> tuple[float, float]:
        """The point of the model's input that shows (x, y) of the photo; outside 0..w, 0..h it was cropped away."""
        x0, y0, x1, y1 = self.seen
        return (x - x0) * self.map[0] / (x1 - x0), (y - y0) * self.map[1] / (y1 - y0)

    def to_original(self, x: float, y: float) -> tuple[float, float]:
        """The photo's point shown at (x, y) of the model's input."""
        x0, y0, x1, y1 = self.seen
        return x0 + x * (x1 - x0) / self.map[0], y0 + y * (y1 - y0) / self.map[1]

    def as_row(self) -> dict[str, Any]:
        """The manifest's form: `{"original": [W, H], "seen": [x0, y0, x1, y1], "map": [w, h], "exif": n}`."""
        return {"original": [*self.original], "seen": [*self.seen], "map": [*self.map], "exif": self.exif}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Geometry:
        """The geometry that `as_row` wrote."""
        (width, height), (x0, y0, x1, y1), (w, h) = row["original"], row["seen"], row["map"]
        return cls((width, height), (x0, y0, x1, y1), (w, h), row["exif"])


@dataclass(frozen=True)
class Preprocessing:
    """How a classifier wants its pictures: resize, crop around the centre, then (x / 255 - mean) / std.

    `size` (h, w) of the model's input. `resize` before the crop: an int is the length of the short side; with (h, w)
    the picture covers that box ("center"), fits into it ("border") or is stretched to it ("squash", exactly); None does
    not resize. What the picture does not fill is black, with "border" the mean colour. `mean` and `std` per channel,
    for 0..1 pixels, are only kept here: the engine applies them on the device. `channels` is 3 (RGB) or 1 (grey).
    """

    size: tuple[int, int]
    resize: int | tuple[int, int] | None
    crop_mode: CropMode
    interpolation: Interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int = 3

    def __post_init__(self) -> None:
        """Raise ValueError for values that no picture could be prepared with."""
        for name, choices in (("crop_mode", get_args(CropMode)), ("interpolation", get_args(Interpolation))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}")
        if self.channels not in (1, 3):
            raise ValueError(f"pictures have 3 channels (or 1, grey), this preprocessing asks for {self.channels}")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"mean and std must have {self.channels} values each, not {self.mean} and {self.std}")
        sides = self.resize if isinstance(self.resize, tuple) else (self.resize or 1,)
        if min(*self.size, *sides) < 1 or min(self.std) <= 0:
            raise ValueError(f"size, resize and std must be positive, not {self.size}, {self.resize}, {self.std}")

    @classmethod
    def from_timm(cls, config: Mapping[str, Any]) -> Preprocessing:
        """What timm evaluates a model with; `config` is `timm.data.resolve_model_data_config(model)`."""
        channels, *size = config["input_size"]
        crop_mode: CropMode = config.get("crop_mode") or "center"
        height, width = (math.floor(side / (config.get("crop_pct") or 0.875)) for side in size)
        return cls(
            size=(size[0], size[1]),
            # timm rounds the long side down for square targets and to the nearest for others, as `_resized` does
            resize=height if crop_mode == "center" and height == width else (height, width),
            crop_mode=crop_mode,
            interpolation=config["interpolation"],
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            channels=channels,
        )

    @classmethod
    def from_torchvision(cls, preset: Any) -> Preprocessing:
        """What torchvision evaluates a model with; `preset` is `weights.transforms()`, an `ImageClassification`."""
        crop, resize = _sides(preset.crop_size), _sides(preset.resize_size)
        interpolation = str(getattr(preset.interpolation, "value", preset.interpolation))
        return cls(
            size=(crop[0], crop[-1]),
            resize=resize[0] if len(resize) == 1 else (resize[0], resize[1]),
            crop_mode="center" if len(resize) == 1 else "squash",
            interpolation=interpolation.removesuffix("-exact"),  # type: ignore[arg-type]  # checked in __post_init__
            mean=tuple(preset.mean),
            std=tuple(preset.std),
        )

    def apply(self, picture: Picture) -> tuple[NDArray[np.uint8], Geometry]:
        """The model's input before normalisation, (h, w, channels) 0..255, and where in the photo it lies."""
        photo = Image.fromarray(picture.pixels)
        if self.channels == 1:
            photo = photo.convert("L")
        height, width = self.size
        resized = self._resized(*photo.size)
        left, top = _offset(resized[0], width), _offset(resized[1], height)
        canvas = Image.new(photo.mode, (width, height), self._fill())
        shown = (max(left, 0), max(top, 0), min(left + width, resized[0]), min(top + height, resized[1]))
        part = _resized_part(photo, resized, shown, Image.Resampling[self.interpolation.upper()])
        canvas.paste(part, (max(-left, 0), max(-top, 0)))
        x, y = photo.width / resized[0], photo.height / resized[1]
        seen = (left * x, top * y, (left + width) * x, (top + height) * y)
        pixels = np.array(canvas).reshape(height, width, self.channels)
        return pixels, Geometry(photo.size, seen, (width, height), picture.exif)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """(w, h) of the whole resized picture, in the arithmetic and rounding of timm and torchvision."""
        if self.resize is None:
            return width, height
        if isinstance(self.resize, int) and self.crop_mode == "center":
            long_side = int(self.resize * max(width, height) / min(width, height))
            return (self.resize, long_side) if width <= height else (long_side, self.resize)
        box_height, box_width = self.resize if isinstance(self.resize, tuple) else (self.resize, self.resize)
        if self.crop_mode == "squash":
            return box_width, box_height
        ratios = height / box_height, width / box_width
        ratio = max(ratios) if self.crop_mode == "border" else min(ratios)
        return max(1, round(width / ratio)), max(1, round(height / ratio))

    def _fill(self) -> tuple[int, ...]:
        return tuple(round(255 * value) for value in self.mean) if self.crop_mode == "border" else (0,) * self.channels


def _sides(size: int | list[int]) -> list[int]:
    return [size] if isinstance(size, int) else list(size)


def _offset(length: int, crop: int) -> int:
    """Where a centred crop begins, negative where it needs padding; halves are rounded to even as in torchvision."""
    return round((length - crop) / 2) if length >= crop else -((crop - length) // 2)


def _resized_part(
    photo: Image.Image, size: tuple[int, int], part: tuple[int, int, int, int], method: Image.Resampling
) -> Image.Image:
    """The `part` (left, top, right, bottom) of `photo` resized to `size`.

    Of a huge size only the part is computed. It may then differ from the same part of the whole by one grey level, with
    "nearest" by the choice between two pixels that are equally near.
    """
    if size[0] * size[1] <= _WHOLE:
        return photo.resize(size, method).crop(part)
    x, y = photo.width / size[0], photo.height / size[1]
    box = (part[0] * x, part[1] * y, part[2] * x, part[3] * y)
    # Pillow holds `box` in single precision: cut a neighbourhood first, wider than any filter, to keep it small.
    margin = math.ceil(3 * max(1, x, y)) + 1
    left, top = max(0, math.floor(box[0]) - margin), max(0, math.floor(box[1]) - margin)
    right, bottom = min(photo.width, math.ceil(box[2]) + margin), min(photo.height, math.ceil(box[3]) + margin)
    near = photo.crop((left, top, right, bottom))
    inner = (box[0] - left, box[1] - top, min(box[2] - left, near.width), min(box[3] - top, near.height))
    return near.resize((part[2] - part[0], part[3] - part[1]), method, inner)
