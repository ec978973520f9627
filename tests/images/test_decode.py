"""Known pixel values for every kind of file, and a `Broken` of the right type for everything that is no picture."""

from __future__ import annotations

import errno
import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import STORED
from PIL import Image

from xai_cli.images.decode import FORMATS, Broken, decode, opened
from xai_cli.images.geometry import Preprocessing

RAMP = np.linspace(0, 65535, 12 * 16).reshape(12, 16)
RGB = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def written(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def encoded(image: Image.Image, format: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def icon_around(png: bytes) -> bytes:
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(png), 22) + png


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP", "JPEG2000", "GIF", "ICO"])
def test_lossless_formats_give_their_pixels_whatever_the_name(format: str, tmp_path: Path) -> None:
    assert format in FORMATS
    square = np.resize(RGB, (16, 16, 3)) // 64 * 64  # few colours, so that a GIF palette holds them
    options: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True}, "ICO": {"sizes": [(16, 16)]}}
    picture = decode(
        written(tmp_path / "misnamed.jpg", Image.fromarray(square), format=format, **options.get(format, {}))
    )
    np.testing.assert_array_equal(picture.pixels, square)
    assert (picture.format, picture.exif, picture.frames, picture.warnings) == (format, 1, 1, ())


@pytest.mark.parametrize(("format", "tolerance"), [("JPEG", 4), ("AVIF", 4)])
def test_lossy_formats_are_close(format: str, tolerance: int, tmp_path: Path) -> None:
    grey = Image.fromarray((RAMP / 257).astype(np.uint8)).convert("RGB")
    pixels = decode(written(tmp_path / "photo", grey, format=format, quality=98)).pixels
    assert np.abs(pixels.astype(int) - np.asarray(grey)).max() <= tolerance


def test_16_bit_grey_equals_its_8_bit_twin(tmp_path: Path) -> None:
    picture = decode(written(tmp_path / "a.png", Image.fromarray(RAMP.astype(np.uint16))))
    assert np.abs(picture.pixels[..., 1].astype(int) - RAMP / 257).max() <= 1
    assert picture.mode == "I;16"
    assert picture.warnings == ("grey values 0 to 65535 were scaled from 0..65535 to 8 bits",)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 7.0, 200.0]], np.float32), [0, 7, 200]),
        (np.array([[-1.0, 0.0, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[-3e38, 0.0, 3e38]], np.float32), [0, 128, 255]),
        (np.array([[-5.0, -5.0, -5.0]], np.float32), [0, 0, 0]),
        (np.array([[0, 1, 255]], np.int32), [0, 1, 255]),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),
        (np.array([[0, 100_000, 200_000]], np.int32), [0, 128, 255]),
    ],
)
def test_deep_grey_is_scaled_and_never_clipped(values: np.ndarray, expected: list[int], tmp_path: Path) -> None:
    picture = decode(written(tmp_path / "a.tif", Image.fromarray(values)))
    assert picture.pixels[0].tolist() == [[value] * 3 for value in expected]
    assert "were scaled from" in picture.warnings[0]


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    half = decode(written(tmp_path / "a.png", Image.new("RGBA", (2, 2), (0, 100, 200, 128))))
    assert half.pixels[0, 0].tolist() == [127, 177, 227]
    assert half.warnings == ("transparent parts were laid on white",)
    assert decode(written(tmp_path / "b.png", Image.new("LA", (2, 2), (0, 0)))).pixels.min() == 255
    assert decode(written(tmp_path / "c.png", Image.new("RGBA", (2, 2), (0, 100, 200, 255)))).warnings == ()


def test_a_picture_of_several_bands_is_whole(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(0, 256, (700, 1700, 4), dtype=np.uint8)  # a band, and a part of one
    numbers[:690, :, 3] = 255  # only the last band shows white through
    picture = decode(written(tmp_path / "a.png", Image.fromarray(numbers), compress_level=1))
    alpha = numbers[..., 3:] / 255
    assert np.abs(picture.pixels - (numbers[..., :3] * alpha + 255 * (1 - alpha))).max() <= 1
    assert picture.warnings == ("transparent parts were laid on white",)
    grey = numbers[..., 0].astype(np.float32)
    grey[-1, -1] = 510.0  # the last band decides the range
    picture = decode(written(tmp_path / "a.tif", Image.fromarray(grey)))
    np.testing.assert_array_equal(picture.pixels[..., 2], np.rint(grey * (255 / 65535)))


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    picture = decode(written(tmp_path / "a.png", image, transparency=0))
    assert picture.pixels.tolist() == [[[255, 255, 255], [0, 0, 255]]]


def test_one_bit_and_cmyk(tmp_path: Path) -> None:
    bits = Image.new("1", (2, 1))
    bits.putpixel((1, 0), 1)
    assert decode(written(tmp_path / "a.png", bits)).pixels.tolist() == [[[0] * 3, [255] * 3]]
    for name in ("ink.jpg", "ink.tif"):
        picture = decode(written(tmp_path / name, Image.new("CMYK", (8, 8), (255, 0, 0, 0))))
        assert picture.pixels[0, 0].tolist() == [0, 255, 255]
        assert picture.mode == "CMYK"


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_first_frame_of_several(suffix: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    path = written(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:], **options)
    picture = decode(path)
    assert (picture.pixels == (255, 0, 0)).all()
    assert picture.frames == 3
    assert picture.warnings == ("the file holds 3 frames, the first was taken",)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", STORED)
def test_eight_orientations_are_one_picture(orientation: int, suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](RGB))
    path = written(tmp_path / f"a.{suffix}", Image.fromarray(stored), exif=exif)
    picture = decode(path)
    np.testing.assert_array_equal(picture.pixels, RGB)
    assert picture.exif == (orientation if orientation < 9 else 1)
    where = Preprocessing((8, 8), 10, "center", "bilinear", (0.5,) * 3, (0.5,) * 3).apply(picture)[1]
    assert (where.original, where.exif) == ((16, 12), picture.exif)
    assert where.seen == pytest.approx((2 * 16 / 13, 1.2, 10 * 16 / 13, 10.8))
    if suffix == "png":
        np.testing.assert_array_equal(decode(path, turn=False).pixels, stored)
        assert decode(path, turn=False).exif == 1


def test_damaged_exif_costs_only_a_warning(tmp_path: Path) -> None:
    picture = decode(written(tmp_path / "a.png", Image.fromarray(RGB), exif=b"Exif\0\0garbage"))
    np.testing.assert_array_equal(picture.pixels, RGB)
    assert picture.warnings == ("the EXIF data is damaged, the picture was taken as upright",)


PHOTO = Image.effect_noise((64, 48), 90).convert("RGB")
JPEG, PNG = encoded(PHOTO, "JPEG"), encoded(PHOTO, "PNG")
NAN = encoded(Image.fromarray(np.array([[0, np.nan]], np.float32)), "TIFF")
BROKEN = {
    "empty": (b"", "open", "Empty", "the file is empty"),
    "text": (b"hello\n", "open", "NotAnImage", "not a picture in one of the formats JPEG, PNG"),
    "page": (b"\n<!DOCTYPE html><p>404", "open", "NotAnImage", "a web page or other markup"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "open", "NotAnImage", "git lfs pull"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "open", "NotAnImage", "PostScript"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "open", "NotAnImage", "HEIC photo.*convert it to JPEG"),
    "zeros": (bytes(4096), "open", "NotAnImage", "zeros, as an interrupted copy leaves them"),
    "half-jpeg": (JPEG[: len(JPEG) // 2], "decode", "Truncated", "the file is cut short: .*truncated"),
    "half-png": (PNG[: len(PNG) // 2], "decode", "Truncated", "the file is cut short: .*truncated"),
    "head-only": (JPEG[:3] + b"\xe0", "open", "BrokenHeader", "begins like JPEG, but its header is damaged"),
    "flipped": (PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:], "decode", "Corrupt", "its data is damaged: broken"),
    "bomb": (png_header(50000, 50000), "open", "TooLarge", "50000 x 50000 = 2500.0 million pixels, the limit is 89.5"),
    "icon-bomb": (icon_around(png_header(50000, 50000)), "open", "TooLarge", "50000 x 50000"),
    "no-width": (png_header(0, 5), "open", "BrokenHeader", "begins like PNG"),
    "nan": (NAN, "decode", "NonFinite", "NaN or infinite"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_say_what_is_wrong(name: str, tmp_path: Path) -> None:
    content, stage, kind, message = BROKEN[name]
    path = tmp_path / f"{name}.jpg"
    path.write_bytes(content)
    with pytest.raises(Broken, match=message) as caught:
        decode(path)
    assert (caught.value.stage, caught.value.type) == (stage, kind)
    assert str(tmp_path) not in caught.value.message
    assert "object at 0x" not in caught.value.message


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_cut_anywhere_is_whole_or_broken(format: str, tmp_path: Path) -> None:
    content = encoded(PHOTO, format)
    for length in range(0, len(content), max(1, len(content) // 40)):
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(Broken) as caught:
            decode(tmp_path / "cut")
        assert caught.value.type in ("Empty", "NotAnImage", "BrokenHeader", "Truncated", "Corrupt"), length


def test_the_pixel_limit_is_exact(tmp_path: Path) -> None:
    path = written(tmp_path / "a.png", Image.fromarray(RGB))
    assert decode(path, max_pixels=12 * 16).pixels.shape == (12, 16, 3)
    with pytest.raises(Broken, match="raise --max-pixels"):
        decode(path, max_pixels=12 * 16 - 1)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda path: None, "NotFound"),
        (lambda path: path.mkdir(), "NotAFile"),
        (lambda path: os.mkfifo(path), "NotAFile"),
        (lambda path: path.symlink_to(path), "NotFound"),
        (lambda path: path.symlink_to("/dev/zero"), "NotAFile"),
        (lambda path: path.symlink_to("/etc/passwd"), "NotAnImage"),
    ],
    ids=["missing", "folder", "pipe", "loop", "device", "passwd"],
)
def test_what_is_no_picture_file(make: object, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    make(path)  # type: ignore[operator]
    with pytest.raises(Broken) as caught:
        decode(path)
    assert (caught.value.stage, caught.value.type) == ("open", kind)
    assert "root" not in caught.value.message


def test_odd_paths() -> None:
    for path, kind in ((Path("a\0.jpg"), "NotFound"), (Path("a" * 5000), "NameTooLong")):
        with pytest.raises(Broken) as caught:
            decode(path)
        assert caught.value.type == kind


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    path = written(tmp_path / "a.png", PHOTO)
    path.chmod(0)
    with pytest.raises(Broken, match="reading it is not permitted"):
        decode(path)


@pytest.mark.parametrize("stage", ["open", "decode"])
@pytest.mark.parametrize(
    ("error", "kind", "message", "transient"),
    [
        (OSError(errno.EIO, "Input/output error"), "ReadError", "reading it failed: Input/output error", True),
        (OSError(errno.ESTALE, "Stale file handle"), "ReadError", "Stale file handle", True),
        (OSError(errno.ETIMEDOUT, "Connection timed out"), "ReadError", "timed out", True),
        (BlockingIOError(errno.EAGAIN, "Try again"), "ReadError", "Try again", True),
        (OSError(errno.EMFILE, "Too many open files"), "ReadError", "too many open files, raise `ulimit -n`", True),
        (OSError(errno.ENFILE, "Too many open files in system"), "ReadError", "too many open files", True),
        (MemoryError(), "OutOfMemory", "not enough memory for its pixels", True),
        (OSError("out of memory when reading image file"), "OutOfMemory", "not enough memory", True),
        (OSError(errno.EACCES, "Permission denied"), "PermissionDenied", "not permitted", False),
        (OSError("broken data stream"), "Corrupt", "broken data stream", False),
    ],
    ids=str,
)
def test_only_what_may_pass_is_transient(
    stage: str, error: Exception, kind: str, message: str, transient: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    path = written(tmp_path / "a.png", PHOTO)
    monkeypatch.setattr(*((Image, "open") if stage == "open" else (Image.Image, "crop")), fail)
    with pytest.raises(Broken, match=message) as caught:
        decode(path)
    assert (caught.value.stage, caught.value.type, caught.value.transient) == (stage, kind, transient)


def test_a_header_is_enough_to_open_and_the_pixels_come_once(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEG[: len(JPEG) // 2])
    with opened(tmp_path / "a.jpg") as file:
        with pytest.raises(Broken, match="cut short"):
            file.picture()
        with pytest.raises(AssertionError, match="decoded once"):
            file.picture()


PEAK = """
import sys
from pathlib import Path
from xai_cli.images.decode import opened
from xai_cli.images.geometry import Preprocessing
from xai_cli.outputs.pictures import display_copy

def resident(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024

recipe = Preprocessing((224, 224), 256, "center", "bilinear", (0.5,) * 3, (0.5,) * 3)
for path in map(Path, sys.argv[1:]):
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    with opened(path) as file:
        picture = file.picture()
    recipe.apply(picture), display_copy(picture.pixels, 1024)
    print(path.name, file.memory, resident("VmHWM") - before)
    del picture
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux")
def test_the_memory_that_a_header_foretells_is_enough_and_not_far_too_much(tmp_path: Path) -> None:
    size, grey = (3000, 2000), np.broadcast_to(np.linspace(0, 1, 3000, dtype=np.float32), (2000, 3000))
    turned = Image.Exif()
    turned[0x0112] = 6
    paths = [
        written(tmp_path / "photo.jpg", Image.new("RGB", size), exif=turned),
        written(tmp_path / "progressive.jpg", Image.new("CMYK", size), progressive=True),
        written(tmp_path / "alpha.png", Image.new("RGBA", size), compress_level=1),
        written(tmp_path / "deep.png", Image.fromarray((grey * 65535).astype(np.uint16)), compress_level=1),
        written(tmp_path / "float.tif", Image.fromarray(grey)),
        written(tmp_path / "lossy.webp", Image.new("RGB", size), method=0),
    ]
    command = [sys.executable, "-c", PEAK, *map(str, paths)]
    settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back to the system at once
    lines = subprocess.run(command, capture_output=True, text=True, check=True, env=settings).stdout.splitlines()
    assert len(lines) == len(paths)
    for line in lines:
        foretold, measured = map(int, line.split()[1:])
        assert measured <= foretold <= 3 * measured, line


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    before = len(os.listdir("/proc/self/fd"))
    for name, (content, *_) in BROKEN.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Broken):
            decode(tmp_path / name)
    with pytest.raises(Broken):
        decode(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
