"""A path becomes the upright 8-bit RGB picture that a viewer would show, or a `Broken` that says why not.

Pillow decodes; torchvision's decoder ends the process on some broken PNGs. The content decides the format, never the
extension, and only the formats of `FORMATS` are tried, so a PostScript file called `.jpg` does not start Ghostscript.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, IcoImagePlugin, Image, TiffImagePlugin, UnidentifiedImageError

# Registering plug-ins is lazy and not thread-safe, and Pillow's own limit is one global that only warns up to twice its
# value: both are settled here, before any thread starts. `decode` holds every picture against its own `max_pixels`.
Image.init()
Image.MAX_IMAGE_PIXELS = None

FORMATS = tuple(
    name for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "ICO") if name in Image.OPEN
)

# O_NONBLOCK: opening a named pipe would otherwise wait for its writer, for ever. No system has all three flags.
_OPEN_FLAGS = os.O_RDONLY
for _name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
    _OPEN_FLAGS |= getattr(os, _name, 0)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_ERRNO = {
    errno.ENOENT: ("NotFound", "there is no such file"),
    errno.ENOTDIR: ("NotFound", "there is no such file, a part of its path is not a folder"),
    errno.ELOOP: ("NotFound", "its symbolic links lead in a circle"),
    errno.ENAMETOOLONG: ("NameTooLong", "its path is longer than the system allows"),
    errno.EACCES: ("PermissionDenied", "reading it is not permitted"),
    errno.EPERM: ("PermissionDenied", "reading it is not permitted"),
    errno.EISDIR: ("NotAFile", "it is a folder, not a file"),
    errno.ENXIO: ("NotAFile", "it is a socket or a device, not a file"),
}

_IMPOSTORS = (
    (b"version https://git-lfs", "a git-LFS pointer, fetch the picture with `git lfs pull`"),
    (b"%!PS", "PostScript, convert it to PNG first"),
    (b"%PDF", "a PDF document, convert its pages to PNG first"),
    (b"<svg", "an SVG drawing, convert it to PNG first"),
    (b"<", "a web page or other markup, was the download answered by an error page?"),
    (b"SIMPLE  =", "a FITS file, convert it to TIFF first"),
    (b"\0\0\0\0", "zeros, as an interrupted copy leaves them"),
)


class Broken(Exception):  # noqa: N818  (it is an outcome of a file, recorded in its manifest line)
    """A file gives no picture: the `stage` that failed ("open" or "decode"), a CamelCase `type` and one sentence."""

    def __init__(self, stage: str, type: str, message: str) -> None:
        """Keep the three, which are the manifest's fields of the same names."""
        super().__init__(message)
        self.stage, self.type, self.message = stage, type, message


@dataclass(frozen=True)
class Picture:
    """One decoded picture.

    `pixels` (H, W, 3) are 0..255 and upright; `format` and `mode` are Pillow's names for what the file
    holds; `exif` is the orientation 1..8 that was undone (1: none); `frames` counts frames or pages, of which this is
    the first; `warnings` say in words what was changed on the way.
    """

    pixels: NDArray[np.uint8]
    format: str
    mode: str
    exif: int
    frames: int
    warnings: tuple[str, ...]


def decode(path: Path, *, max_pixels: int = 89_478_485, turn: bool = True) -> Picture:
    """The picture in `path` as a viewer would show it. Raises `Broken` and nothing else.

    Transparent parts lie on white. 16-bit grey is scaled from 0..65535; 32-bit integers and floats from the narrowest
    of 0..1 (floats only), 0..255, 0..65535 that holds all values, else from their own minimum and maximum: never
    clipped. Embedded colour profiles are ignored, as in the training of the usual models. `turn=False` leaves the EXIF
    orientation alone, as timm and torchvision do (except in TIFF, which Pillow always turns). Safe in several threads.
    """
    warnings: list[str] = []
    with _regular_file(path) as file:
        with _translated("open"):
            _check_icon(file, max_pixels)
            image = _identify(file)
            _check_size(image.size, max_pixels)
            frames = int(getattr(image, "n_frames", 1))
        with _translated("decode"):
            upright, orientation = _loaded(image, turn, warnings)
            pixels = _to_rgb(upright, warnings)
    if frames > 1:
        warnings.append(f"the file holds {frames} frames, the first was taken")
    return Picture(pixels, str(image.format), image.mode, orientation, frames, tuple(warnings))


@contextmanager
def _regular_file(path: Path) -> Iterator[IO[bytes]]:
    """The open file, whatever happens closed again; `Broken` if it is not a regular file or empty."""
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
    except OSError as error:
        raise _read_error("open", error) from error
    except ValueError as error:
        raise Broken("open", "NotFound", "there is no such file, its name holds a NUL character") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        os.close(descriptor)
        if stat.S_ISREG(status.st_mode):
            raise Broken("open", "Empty", "the file is empty")
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, a socket or a device"
        raise Broken("open", "NotAFile", f"it is {kind}, not a file")
    with os.fdopen(descriptor, "rb") as file:
        yield file


@contextmanager
def _translated(stage: str) -> Iterator[None]:
    """Everything that Pillow raises comes out as `Broken`; it raises far more than OSError on damaged files."""
    try:
        yield
    except Broken:
        raise
    except MemoryError as error:
        raise Broken(stage, "OutOfMemory", "there is not enough memory for its pixels") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise _read_error(stage, error) from error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, EOFError) or "truncated" in reason.lower():
            raise Broken(stage, "Truncated", f"the file is cut short: {reason}") from error
        raise Broken(stage, "Corrupt", f"its data is damaged: {reason}") from error


def _read_error(stage: str, error: OSError) -> Broken:
    kind, message = _ERRNO.get(error.errno or 0, ("ReadError", f"reading it failed: {error.strerror}"))
    return Broken(stage, kind, message)


def _identify(file: IO[bytes]) -> Image.Image:
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        file.seek(0)
        raise _unidentified(file.read(32)) from None


def _unidentified(head: bytes) -> Broken:
    for name in FORMATS:
        accept = Image.OPEN[name][1]
        if accept and accept(head[:16]) is True:
            trouble = "its header is damaged, cut short or of a kind that cannot be read here"
            return Broken("open", "BrokenHeader", f"it begins like {name}, but {trouble}")
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"mif1"):
        return Broken("open", "NotAnImage", "it is a HEIC photo, which cannot be read here; convert it to JPEG first")
    for prefix, what in _IMPOSTORS:
        if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(prefix):
            return Broken("open", "NotAnImage", f"it is not a picture, it begins like {what}")
    return Broken("open", "NotAnImage", f"it is not a picture in one of the formats {', '.join(FORMATS)}")


def _check_icon(file: IO[bytes], max_pixels: int) -> None:
    """Pillow decodes an icon while opening it, and the PNG inside may be far larger than the icon's directory says."""
    if file.read(4) == b"\0\0\1\0":
        file.seek(0)
        _check_size(IcoImagePlugin.IcoFile(file).frame(0).size, max_pixels)


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        count = f"{width} x {height} = {width * height / 1e6:.1f} million pixels"
        limit = f"{max_pixels / 1e6:.1f} million"
        raise Broken("open", "TooLarge", f"it claims {count}, the limit is {limit}; raise --max-pixels if you trust it")


def _loaded(image: Image.Image, turn: bool, warnings: list[str]) -> tuple[Image.Image, int]:
    """The picture with its pixels read and turned upright, and the orientation that this undid."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        orientation = _orientation(image, warnings)  # asked first: loading a TIFF turns it and forgets the orientation
        image.load()
        return image, orientation
    image.load()
    orientation = _orientation(image, warnings) if turn else 1
    return (image.transpose(_TURNS[orientation]) if orientation > 1 else image), orientation


def _orientation(image: Image.Image, warnings: list[str]) -> int:
    try:
        tag = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001  (damaged metadata, whatever it raises, is no reason to lose a picture)
        warnings.append("the EXIF data is damaged, the picture was taken as upright")
        return 1
    return tag if isinstance(tag, int) and tag in _TURNS else 1


def _to_rgb(image: Image.Image, warnings: list[str]) -> NDArray[np.uint8]:
    """(H, W, 3) pixels; what was changed besides the colour space is added to `warnings`."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        grey = _to_8_bit(np.asarray(image), image.mode, warnings)
        return np.repeat(grey[..., np.newaxis], 3, axis=2)
    if image.has_transparency_data:
        image = _on_white(image.convert("RGBA"), warnings)
    return np.asarray(image.convert("RGB"))


def _on_white(image: Image.Image, warnings: list[str]) -> Image.Image:
    alpha = image.getchannel("A")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=alpha)
    if alpha.getextrema() != (255, 255):
        warnings.append("transparent parts were laid on white")
    return white


def _to_8_bit(values: NDArray[np.generic], mode: str, warnings: list[str]) -> NDArray[np.uint8]:
    """Grey values scaled to 0..255 by the range that `decode` documents; Pillow's own conversion clips them instead."""
    numbers = values.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise Broken("decode", "NonFinite", "it holds NaN or infinite values")
    low, high = float(numbers.min()), float(numbers.max())
    tops = (65535.0,) if mode.startswith("I;16") else (1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0)
    fitting = [top for top in tops if low >= 0 and high <= top]
    start, end = (0.0, fitting[0]) if fitting else (low, high)
    warnings.append(f"grey values {low:g} to {high:g} were scaled from {start:g}..{end:g} to 8 bits")
    return np.rint((numbers - start) * (255 / ((end - start) or 1))).astype(np.uint8)
