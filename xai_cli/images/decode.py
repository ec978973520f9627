"""A path becomes the upright 8-bit RGB picture that a viewer would show, or a `Broken` that says why not.

Pillow decodes; torchvision's decoder ends the process on some broken PNGs. The content decides the format, never the
extension, and only the formats of `FORMATS` are tried, so a PostScript file called `.jpg` does not start Ghostscript.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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

# Opening a named pipe would otherwise wait for its writer, for ever.
_NONBLOCK: int = getattr(os, "O_NONBLOCK", 0)

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
    errno.EMFILE: ("ReadError", "too many open files, raise `ulimit -n` or lower --workers"),
    errno.ENFILE: ("ReadError", "too many open files on this machine"),
    errno.ENOMEM: ("OutOfMemory", "there is not enough memory to read it"),
}
_PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM)

_IMPOSTORS = (
    (b"version https://git-lfs", "a git-LFS pointer, fetch the picture with `git lfs pull`"),
    (b"%!PS", "PostScript, convert it to PNG first"),
    (b"%PDF", "a PDF document, convert its pages to PNG first"),
    (b"<svg", "an SVG drawing, convert it to PNG first"),
    (b"<", "a web page or other markup, was the download answered by an error page?"),
    (b"SIMPLE  =", "a FITS file, convert it to TIFF first"),
    (b"\0\0\0\0", "zeros, as an interrupted copy leaves them"),
)


# As measured. Of any picture: 3 of the array, 4 of Pillow's copy and up to 4 of what it is resized to;
# or, before that, Pillow's 4 and 8 of the coefficients of a progressive CMYK JPEG. Of some formats the library holds
# more while it decodes (of TIFF a whole strip, 16-bit RGBA at worst).
_BYTES_PER_PIXEL = 12
_DECODING = {"TIFF": 20, "WEBP": 17, "AVIF": 20, "JPEG2000": 28}


class Broken(Exception):  # noqa: N818  (it is an outcome of a file, recorded in its manifest line)
    """A file gives no picture: the `stage` that failed ("open" or "decode"), a CamelCase `type` and one sentence.

    `transient` if the same file may well be read later: a network disk stumbled, or memory or descriptors ran out.
    """

    def __init__(self, stage: str, type: str, message: str, *, transient: bool = False) -> None:
        """Keep the four, which are the manifest's fields of the same names."""
        super().__init__(message)
        self.stage, self.type, self.message, self.transient = stage, type, message, transient


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


@dataclass
class PictureFile:
    """A file of which only the header was read.

    `memory` is the most bytes that it takes at a time to decode it, prepare the picture for a model and reduce it for
    display, estimated from the header.
    """

    memory: int
    _image: Image.Image | None
    _frames: int

    def picture(self, turn: bool = True) -> Picture:
        """The picture as a viewer would show it, as in `decode`; only once. Raises `Broken`."""
        image, self._image = self._image, None  # what Pillow holds is freed when this returns
        assert image is not None, "a picture file is decoded once"
        warnings: list[str] = []
        with _translated("decode"):
            upright, orientation = _loaded(image, turn, warnings)
            pixels = _to_rgb(upright, warnings)
        if self._frames > 1:
            warnings.append(f"the file holds {self._frames} frames, the first was taken")
        return Picture(pixels, str(image.format), image.mode, orientation, self._frames, tuple(warnings))


@contextmanager
def opened(path: Path, *, max_pixels: int = 89_478_485) -> Iterator[PictureFile]:
    """The picture file in `path`, to be decoded inside the `with`. Raises `Broken` for what is none, or too large."""
    with _regular_file(path) as file:
        with _translated("open"):
            picture_file = _header(file, max_pixels)
        yield picture_file


def decode(path: Path, *, max_pixels: int = 89_478_485, turn: bool = True) -> Picture:
    """The picture in `path` as a viewer would show it. Raises `Broken` and nothing else.

    Transparent parts lie on white. 16-bit grey is scaled from 0..65535; 32-bit integers and floats from the narrowest
    of 0..1 (floats only), 0..255, 0..65535 that holds all values, else from their own minimum and maximum: never
    clipped. Embedded colour profiles are ignored, as in the training of the usual models. `turn=False` leaves the EXIF
    orientation alone, as timm and torchvision do (except in TIFF, which Pillow always turns). Safe in several threads.
    """
    with opened(path, max_pixels=max_pixels) as file:
        return file.picture(turn)


@contextmanager
def _regular_file(path: Path) -> Iterator[IO[bytes]]:
    """The open file, whatever happens closed again; `Broken` if it is not a regular file or empty."""
    try:
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | _NONBLOCK))  # noqa: SIM115
    except OSError as error:
        raise _read_error("open", error) from error
    except ValueError as error:
        raise Broken("open", "NotFound", "there is no such file, its name holds a NUL character") from error
    with file:
        with _translated("open"):
            status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise Broken("open", "NotAFile", "it is a pipe, a socket or a device, not a file")
        if not status.st_size:
            raise Broken("open", "Empty", "the file is empty")
        yield file


@contextmanager
def _translated(stage: str) -> Iterator[None]:
    """Everything that Pillow raises comes out as `Broken`; it raises far more than OSError on damaged files."""
    try:
        yield
    except Broken:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise _read_error(stage, error) from error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        # libtiff's -9 is "out of memory" too.
        if isinstance(error, MemoryError) or "out of memory" in reason.lower() or reason == "decoder error -9":
            raise Broken(stage, "OutOfMemory", "there is not enough memory for its pixels", transient=True) from error
        if isinstance(error, EOFError) or "truncated" in reason.lower():
            raise Broken(stage, "Truncated", f"the file is cut short: {reason}") from error
        raise Broken(stage, "Corrupt", f"its data is damaged: {reason}") from error


def _read_error(stage: str, error: OSError) -> Broken:
    kind, message = _ERRNO.get(error.errno or 0, ("ReadError", f"reading it failed: {error.strerror}"))
    return Broken(stage, kind, message, transient=error.errno in _PASSING)


def _header(file: IO[bytes], max_pixels: int) -> PictureFile:
    _check_icon(file, max_pixels)
    image = _identify(file)
    _check_size(image.size, max_pixels)
    memory = _memory(image, os.fstat(file.fileno()).st_size)
    return PictureFile(memory, image, _frames(image))


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


def _frames(image: Image.Image) -> int:
    """How many frames or pages; of a TIFF at most 1000 are counted: Pillow looks for each among all before it."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(getattr(image, "n_frames", 1))
    count = 1
    with suppress(EOFError):
        for count in range(1, 1001):
            image.seek(count)
    image.seek(0)
    return count


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


def _memory(image: Image.Image, file_bytes: int) -> int:
    """See `PictureFile.memory`."""
    short, long = sorted(image.size)
    pixels = short * long
    whole_file = 2 * file_bytes if image.format in ("WEBP", "AVIF") else 0
    # Small pictures are also held half resized, and narrow ones grow until their short side is that of a model's input.
    resized = 4 * min(pixels, 2**22) + min(2**20 * long // short, 2**29)
    return _DECODING.get(str(image.format), _BYTES_PER_PIXEL) * pixels + whole_file + resized


def _loaded(image: Image.Image, turn: bool, warnings: list[str]) -> tuple[Image.Image, int]:
    """The picture with its pixels read and turned upright, and the orientation that this undid."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        orientation = _orientation(image, warnings)  # asked first: loading a TIFF turns it and forgets the orientation
        image.load()
        return image, orientation
    image.load()
    orientation = _orientation(image, warnings) if turn else 1
    if orientation == 1:
        return image, 1
    upright = image.transpose(_TURNS[orientation])
    image.close()  # frees its pixels, which the caller's reference would keep
    return upright, orientation


def _orientation(image: Image.Image, warnings: list[str]) -> int:
    try:
        tag = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001  (damaged metadata, whatever it raises, is no reason to lose a picture)
        warnings.append("the EXIF data is damaged, the picture was taken as upright")
        return 1
    return tag if isinstance(tag, int) and tag in _TURNS else 1


def _to_rgb(image: Image.Image, warnings: list[str]) -> NDArray[np.uint8]:
    """(H, W, 3) pixels; what was changed besides the colour space is added to `warnings`."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        start, end = _grey_range(image, warnings)
        for rows, band in _bands(image):
            scaled = (np.asarray(band, np.float64) - start) * (255 / ((end - start) or 1))
            pixels[rows] = np.rint(scaled)[..., np.newaxis]
    elif image.has_transparency_data:
        opaque = [_on_white(band.convert("RGBA"), pixels[rows]) for rows, band in _bands(image)]
        if not all(opaque):
            warnings.append("transparent parts were laid on white")
    else:
        for rows, band in _bands(image):
            pixels[rows] = np.asarray(band if band.mode == "RGB" else band.convert("RGB"))
    return pixels


def _bands(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """The picture in parts of about a million pixels, so that what they are converted by way of takes little memory."""
    height = max(1, 2**20 // image.width)
    for top in range(0, image.height, height):
        bottom = min(top + height, image.height)
        yield slice(top, bottom), image.crop((0, top, image.width, bottom))


def _on_white(image: Image.Image, pixels: NDArray[np.uint8]) -> bool:
    """True if the RGBA image is opaque; `pixels` get what is seen of it on white."""
    alpha = image.getchannel("A")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=alpha)
    pixels[:] = np.asarray(white)
    return alpha.getextrema() == (255, 255)


def _grey_range(image: Image.Image, warnings: list[str]) -> tuple[float, float]:
    """The values that become 0 and 255, as `decode` documents; Pillow's own conversion clips instead."""
    extremes = [(float(band.min()), float(band.max())) for band in (np.asarray(band) for _, band in _bands(image))]
    if not np.isfinite(extremes).all():  # NaN is the minimum of all that holds one
        raise Broken("decode", "NonFinite", "it holds NaN or infinite values")
    low, high = min(low for low, _ in extremes), max(high for _, high in extremes)
    tops = {"F": (1.0, 255.0, 65535.0), "I": (255.0, 65535.0)}.get(image.mode, (65535.0,))
    fitting = [top for top in tops if low >= 0 and high <= top]
    start, end = (0.0, fitting[0]) if fitting else (low, high)
    warnings.append(f"grey values {low:g} to {high:g} were scaled from {start:g}..{end:g} to 8 bits")
    return start, end
