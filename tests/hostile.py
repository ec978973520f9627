"""A folder of what a batch tool meets: every kind of picture, broken ones, bombs, impostors, names that are traps.

All of it is made anew, the same each time, from a few lines per input; a name that the file system refuses is left out.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

SECRET = "the-password-is-swordfish"
"""Stands in files outside the folder that links lead to; nothing that a run writes or says may hold it."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Case:
    """One input: its path below the folder, and what a run makes of it.

    `expected` is "ok", the type of its error, or "absent" for what a search of the folder leaves out; `listed` the same
    where a list names it, None for folders. `like` names a case of the same upright pixels; a `flat` picture has one
    colour.
    """

    name: str
    why: str
    expected: str
    listed: str | None
    like: str | None = None
    flat: bool = False


Made = tuple[Case, bytes]


def corpus(folder: Path) -> list[Case]:
    """Fills the new `folder`, and `outside` beside it, to which links lead; returns one case per input."""
    (folder.parent / "outside" / "folder").mkdir(parents=True)
    (folder.parent / "outside" / "picture.png").write_bytes(picture("outside"))
    (folder.parent / "outside" / "folder" / "inner.png").write_bytes(picture("far outside"))
    (folder.parent / "outside" / "secret.txt").write_text(f"{SECRET}\n" * 3)
    groups = (formats(), depths(), shapes(), orientations(), damaged_metadata(), truncated(), damaged(), bombs(),
              impostors(), plain_names(), trap_names(), twin_names(), output_names(), long_names(folder),
              left_out())  # fmt: skip
    cases = [case for case, content in chain(*groups) if _written(folder / case.name, content)]
    return cases + [case for case, make in not_files(folder) if _made(make)]


def _written(path: Path, content: bytes) -> bool:
    """Whether the file is there now; a system that takes two names for one must not lose the first."""
    with suppress(OSError, ValueError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(content)
        return True
    return False


def _made(make: Callable[[], object]) -> bool:
    with suppress(OSError, AttributeError, NotImplementedError):
        make()
        return True
    return False


# Pictures, and the bytes of files


def noise(seed: str, height: int = 20, width: int = 24) -> Pixels:
    """(height, width, 3) of 64 colours, which a palette holds, so that also a GIF keeps them."""
    generator = np.random.default_rng(zlib.crc32(os.fsencode(seed)))
    return generator.integers(0, 4, (height, width, 3), dtype=np.uint8) * np.uint8(85)


PHOTO = noise("photo")
GREY = PHOTO[..., 0]
# Each block of a JPEG holds one colour, which all its turned copies keep to the bit.
BLOCKS = noise("blocks", 4, 6).repeat(8, axis=0).repeat(8, axis=1)
FINE = {"quality": 95, "subsampling": 0}
# Of a size that compression leaves long enough to cut.
LARGE = noise("large", 40, 60)


def encoded(pixels: NDArray[Any] | Image.Image, format: str, **options: Any) -> bytes:
    """The file of a picture, lossless where the format can be, a JPEG without reduced colour."""
    stream = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    best = {"WEBP": {"lossless": True, "exact": True}, "JPEG": FINE, "MPO": FINE}
    image.save(stream, format, **{**best.get(format, {}), **options})
    return stream.getvalue()


def picture(seed: str) -> bytes:
    """A PNG like no other."""
    return encoded(noise(seed), "PNG")


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes, *, depth: int = 8, colour: int = 2, before: bytes = b"") -> bytes:
    """A PNG of compressed `data`, with chunks `before` it; `colour` is the PNG's number of a colour type."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def packed(rows: NDArray[Any]) -> bytes:
    """The compressed data of a PNG, from rows of bytes."""
    return zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))


def compressed_zeros(count: int) -> bytes:
    """`zlib.compress(bytes(count))` without the memory and the time: one block, repeated."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = squeeze.compress(bytes(2**20)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    rest = squeeze.compress(bytes(count % 2**20)) + squeeze.flush()
    return b"\x78\x01" + block * (count // 2**20) + rest + struct.pack(">I", count % 65521 << 16 | 1)


def black_png(width: int, height: int) -> bytes:
    """A 1-bit PNG, whole and valid, however large."""
    return png(width, height, compressed_zeros((width + 7) // 8 * height + height), depth=1, colour=0)


def icon(inside: bytes) -> bytes:
    """An icon said to be 16 x 16."""
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inside), 22) + inside


def file(name: str, content: bytes, why: str, expected: str = "ok", **more: Any) -> Made:
    """A case and its content; a list that names it gives the same, if nothing else is said."""
    return Case(name, why, expected, more.pop("listed", expected), **more), content


# Pictures of all kinds


def formats() -> Iterator[Made]:
    """One picture in many files, and the same file under wrong names."""
    frames = {"save_all": True, "append_images": [Image.fromarray(noise(str(each))) for each in range(2)]}
    lossless = {"bmp": "BMP", "dib": "BMP", "tif": "TIFF", "webp": "WEBP", "gif": "GIF", "jp2": "JPEG2000"}
    photo = encoded(PHOTO, "PNG")
    yield file("plain.png", photo, "the plainest")
    for suffix, format in lossless.items():
        yield file(f"plain.{suffix}", encoded(PHOTO, format), "no format loses a pixel", like="plain.png")
    yield file("plain.j2k", encoded(PHOTO, "JPEG2000", no_jp2=True), "without the container", like="plain.png")
    for suffix, format in {"png": "PNG", "gif": "GIF", "webp": "WEBP", "tiff": "TIFF"}.items():
        yield file(f"frames.{suffix}", encoded(PHOTO, format, **frames), "the first frame counts", like="plain.png")
    yield file("lzw.tif", encoded(PHOTO, "TIFF", compression="tiff_lzw"), "compressed TIFF", like="plain.png")
    yield file("icon.ico", encoded(PHOTO, "ICO", sizes=[(24, 20)]), "an icon", like="plain.png")
    yield file("png.jpg", photo, "the content decides", like="plain.png")
    yield file("UPPER.PNG", photo, "an extension in capitals", like="plain.png")
    yield file("trailing.png", photo + b"garbage" * 99, "what follows the end is not read", like="plain.png")

    jpeg = encoded(BLOCKS, "JPEG")
    yield file("plain.jpg", jpeg, "a baseline JPEG")
    yield file("progressive.jpeg", encoded(BLOCKS, "JPEG", progressive=True), "same coefficients", like="plain.jpg")
    yield file("jpeg.png", jpeg, "the content decides", like="plain.jpg")
    yield file("UPPER.JPG", jpeg, "an extension in capitals", like="plain.jpg")
    yield file("trailing.jpg", jpeg + b"\0garbage" * 99, "what follows the end is not read", like="plain.jpg")
    yield file("twice.jpe", jpeg + encoded(PHOTO, "JPEG"), "a second picture follows", like="plain.jpg")
    yield file("stereo.mpo", encoded(BLOCKS, "MPO", **frames), "as phones write it", like="plain.jpg")
    yield file("half-colour.jfif", encoded(LARGE, "JPEG", subsampling=2), "with reduced colour, as most are")
    yield file("lossy.webp", encoded(LARGE, "WEBP", lossless=False, exact=False), "lossy WebP")
    if "AVIF" in Image.SAVE:
        yield file("plain.avif", encoded(LARGE, "AVIF"), "lossy AVIF")


def depths() -> Iterator[Made]:
    """Modes and bit depths: what is grey in one is grey in the other, what is deep is scaled and never clipped."""
    grey16, rgb16 = GREY.astype(np.uint16) * 257, PHOTO.astype(">u2") * 257
    yield file("grey.png", encoded(GREY, "PNG"), "8-bit grey")
    for name, values in {
        "grey16.png": grey16,
        "grey16.tif": grey16,
        "grey16-big-endian.tif": grey16.astype(">u2"),
        "int32.tif": GREY.astype(np.int32),
        "float.tif": (GREY / 255).astype(np.float32),
    }.items():
        yield file(name, encoded(values, "TIFF" if ".tif" in name else "PNG"), "scaled to 8 bits", like="grey.png")
    two_bits = np.packbits(np.unpackbits((GREY // 85)[..., None], axis=2)[..., 6:].reshape(20, -1), axis=1)
    yield file("grey2.png", png(24, 20, packed(two_bits), depth=2, colour=0), "2-bit grey", like="grey.png")
    yield file("rgb16.png", png(24, 20, packed(rgb16), depth=16), "16 bits per colour", like="plain.png")
    yield file("rgba.png", encoded(np.dstack([PHOTO, np.full_like(GREY, 255)]), "PNG"), "opaque", like="plain.png")
    yield file("la.png", encoded(np.dstack([GREY, np.full_like(GREY, 255)]), "PNG"), "opaque", like="grey.png")
    yield file("half-clear.png", encoded(np.dstack([PHOTO, GREY]), "PNG"), "laid on white")
    yield file("half-clear.webp", encoded(np.dstack([PHOTO, GREY]), "WEBP"), "laid on white", like="half-clear.png")
    yield file("clear-grey.png", encoded(np.dstack([GREY, GREY[::-1]]), "PNG"), "grey laid on white")
    palette = Image.fromarray(GREY // 85).convert("P")
    palette.putpalette([9, 9, 9, 250, 0, 0, 0, 250, 0, 0, 0, 250])
    yield file("palette.png", encoded(palette, "PNG"), "a palette of four")
    yield file("palette-clear.png", encoded(palette, "PNG", transparency=1), "one colour of it is clear")
    bits = Image.fromarray(GREY > 99)
    yield file("bits.png", encoded(bits, "PNG"), "1 bit")
    yield file("bits.tif", encoded(bits, "TIFF", compression="group4"), "a fax", like="bits.png")
    yield file("grey.jpg", encoded(GREY, "JPEG"), "a grey JPEG")
    ink = Image.fromarray(PHOTO).convert("CMYK")
    yield file("ink.tif", encoded(ink, "TIFF"), "four inks", like="plain.png")
    yield file("ink.jpg", encoded(ink, "JPEG"), "four inks, inverted as Adobe does")
    yield file("yuv.tif", encoded(Image.fromarray(PHOTO).convert("YCbCr"), "TIFF"), "brightness and two colours")


def shapes() -> Iterator[Made]:
    """Sizes at the edge, pictures of one colour, a mirrored pair."""
    square = noise("square", 16, 16)
    yield file("square.png", encoded(square, "PNG"), "of the model's own size")
    yield file("mirrored.png", encoded(square[:, ::-1], "PNG"), "its mirror image")
    yield file("wide.png", encoded(noise("wide", 1, 20_000), "PNG"), "20000 x 1")
    yield file("high.png", encoded(noise("high", 20_000, 1), "PNG"), "1 x 20000")
    yield file("pixel.png", encoded(noise("pixel", 1, 1), "PNG"), "1 x 1", flat=True)
    for name, level in (("black", 0), ("grey-field", 127), ("white", 255)):
        yield file(f"{name}.png", encoded(np.full_like(PHOTO, level), "PNG"), "one colour", flat=True)
    clear = encoded(Image.new("RGBA", (24, 20)), "PNG")
    yield file("clear.png", clear, "wholly clear: white", flat=True, like="white.png")
    yield file("black-bits.png", black_png(24, 20), "black again", flat=True, like="black.png")


# How a camera stores the upright picture under each orientation; 9 does not exist and means none.
STORED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
    9: lambda a: a,
}


def orientations() -> Iterator[Made]:
    """One picture as a camera stores it in all positions."""
    for number, turned in STORED.items():
        exif = Image.Exif()
        exif[0x0112] = number
        for suffix, format, upright in (("jpg", "JPEG", BLOCKS), ("png", "PNG", PHOTO), ("tif", "TIFF", PHOTO)):
            content = encoded(np.ascontiguousarray(turned(upright)), format, exif=exif)
            like = "plain.jpg" if suffix == "jpg" else "plain.png"
            yield file(f"turned-{number}.{suffix}", content, f"EXIF orientation {number}", like=like)


def damaged_metadata() -> Iterator[Made]:
    """What lies beside the pixels may be wrong, and costs no picture."""
    profiles = {name: ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes() for name in ("sRGB", "LAB")}
    for name, profile in {**profiles, "no": b"no profile" * 20}.items():
        timeless = profile[:24] + bytes(12) + profile[36:]
        content = encoded(PHOTO, "PNG", icc_profile=timeless)
        yield file(f"{name}-profile.png", content, "colour profiles are ignored", like="plain.png")
    yield file("no-exif.png", encoded(PHOTO, "PNG", exif=b"Exif\0\0garbage"), "garbage for EXIF", like="plain.png")
    word = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHI4s", 0x0112, 2, 4, b"six\0") + bytes(4)
    yield file("word-exif.jpg", encoded(BLOCKS, "JPEG", exif=word), "an orientation in words", like="plain.jpg")
    stereo = encoded(BLOCKS, "MPO", save_all=True, append_images=[Image.fromarray(PHOTO)])
    table = stereo.index(b"MPF\0")
    broken = stereo[: table + 20] + b"\xff" * 16 + stereo[table + 36 :]
    yield file("no-stereo.mpo", broken, "a broken table of its pictures", like="plain.jpg")


# Broken files


def truncated() -> Iterator[Made]:
    """Half of each format, and the few bytes that an interrupted copy leaves."""
    yield file("empty.jpg", b"", "no byte", "Empty")
    yield file("one-byte.png", b"\x89", "one byte", "NotAnImage")
    for suffix, format in {"png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tif": "TIFF"}.items():
        content = encoded(LARGE, format)
        yield file(f"half.{suffix}", content[: len(content) // 2], "the second half is gone", HALF[suffix])
    jpeg = encoded(LARGE, "JPEG")
    yield file("half.jpg", jpeg[: len(jpeg) // 2], "the second half is gone", "Truncated")
    yield file("less-two.jpg", jpeg[:-2], "the end mark is gone", "Truncated")
    yield file("head.jpg", jpeg[: jpeg.index(b"\xff\xda")], "no scan follows the header", "Corrupt")
    yield file("head-half.jpg", jpeg[:20], "half of the header", "BrokenHeader")
    yield file("head.png", encoded(LARGE, "PNG")[:33], "no data follow the header", "BrokenHeader")


HALF = {"png": "Truncated", "webp": "Corrupt", "gif": "Truncated", "bmp": "Truncated", "tif": "Truncated"}


def damaged() -> Iterator[Made]:
    """Whole in length, wrong inside."""
    photo, jpeg = encoded(PHOTO, "PNG"), encoded(LARGE, "JPEG")
    data, sums = photo.index(b"IDAT"), photo.index(b"IHDR") + 17
    yield file("no-end.png", photo[:-12], "only IEND is missing, all pixels are there", like="plain.png")
    yield file("header-sum.png", photo[:sums] + b"\0\0\0\0" + photo[sums + 4 :], "wrong check sum", "BrokenHeader")
    sum_of_data = photo[:-16] + b"\0\0\0\0" + photo[-12:]
    yield file("data-sum.png", sum_of_data, "kills torchvision, all pixels are there", like="plain.png")
    yield file("data-flip.png", photo[: data + 40] + b"\xff" * 9 + photo[data + 49 :], "data overwritten", "Corrupt")
    few = packed(PHOTO[:5].reshape(5, -1))
    yield file("too-few.png", png(24, 20, few), "rows are missing, which Pillow takes as black")
    yield file("no-palette.png", png(8, 8, packed(np.ones((8, 8), np.uint8)), colour=3), "no palette", "Corrupt")
    yield file("no-width.png", png(0, 5, packed(np.zeros((5, 1)))), "0 pixels wide", "BrokenHeader")
    yield file("minus.png", png(2**31, 1, packed(np.zeros((1, 9)))), "2147483648 pixels wide", "TooLarge")
    flipped = bytearray(jpeg)
    flipped[-60] ^= 0x10
    yield file("bit-flip.jpg", bytes(flipped), "a JPEG has no check sum")
    tables = encoded(BLOCKS, "JPEG").replace(b"\xff\xc4", b"\xff\xe9")
    yield file("no-tables.jpg", tables, "no Huffman tables: the usual ones are taken", like="plain.jpg")
    yield file("leading.jpg", b"\n\n" + jpeg, "garbage before the start", "NotAnImage")
    nan = np.where(GREY == 0, np.nan, GREY).astype(np.float32)
    yield file("nan.tif", encoded(nan, "TIFF"), "NaN among the values", "NonFinite")
    tiff = encoded(PHOTO, "TIFF")
    beyond = tiff[:4] + b"\xff\xff\xff\x7f" + tiff[8:]
    yield file("no-directory.tif", beyond, "its directory lies beyond the end", "BrokenHeader")
    yield file("no-frames.ico", struct.pack("<HHH", 0, 1, 0) + bytes(99), "an icon of none", "Corrupt")
    yield file("zeros.jpg", bytes(5000), "zeros, as after a crash", "NotAnImage")


def bombs() -> Iterator[Made]:
    """Small files that claim, or hold, far more than a machine has memory for."""
    claim = png(50_000, 50_000, b"", depth=1, colour=0)[:74]
    yield file("bomb.png", black_png(50_000, 50_000), "2500 million pixels, all there", "TooLarge")
    yield file("bomb-100.png", black_png(10_000, 10_000), "100 million pixels in 13 KB", "TooLarge")
    yield file("bomb-claim.png", claim, "2500 million pixels in 69 bytes", "TooLarge")
    jpeg = encoded(PHOTO, "JPEG")
    size = jpeg.index(b"\xff\xc0") + 5
    jpeg = jpeg[:size] + struct.pack(">HH", 65500, 65500) + jpeg[size + 4 :]
    yield file("bomb.jpg", jpeg, "65500 squared", "TooLarge")
    gif = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0)
    yield file("bomb.gif", gif + b"\x02\x02\x4c\x01\x00;", "65535 squared in 29 bytes", "TooLarge")
    bitmap = encoded(PHOTO, "BMP")
    yield file("bomb.bmp", bitmap[:18] + struct.pack("<ii", 60_000, 60_000) + bitmap[26:], "60000 squared", "TooLarge")
    wave = encoded(PHOTO, "JPEG2000", no_jp2=True)
    size = wave.index(b"\xff\x51") + 6
    yield file("bomb.j2k", wave[:size] + struct.pack(">II", 60_000, 60_000) + wave[size + 8 :], "the same", "TooLarge")
    yield file("bomb.ico", icon(claim), "an icon with a bomb inside", "TooLarge")
    text = chunk(b"zTXt", b"note\0\0" + compressed_zeros(2**31))
    yield file("bomb-text.png", png(24, 20, packed(PHOTO.reshape(20, -1)), before=text), "2 GB of text", "Corrupt")
    endless = chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))
    rows = packed(PHOTO.reshape(20, -1))
    yield file("bomb-frames.png", png(24, 20, rows, before=endless), "claims 2147483647 frames", like="plain.png")
    yield file("bomb-pages.tif", pages(20_000), "20000 pages, counted by looking at each and all before it", flat=True)
    yield file("loop.tif", pages(1, circular=True), "its one page names itself as the next", flat=True)


def pages(count: int, *, circular: bool = False) -> bytes:
    """A TIFF of black pages of one pixel."""
    tags = ((256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 8), (278, 1), (279, 1))
    size = 2 + 12 * len(tags) + 4
    page = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    following = [16 + size * number for number in range(1, count)] + [16 if circular else 0]
    return b"II*\0" + struct.pack("<I", 16) + bytes(8) + b"".join(page + struct.pack("<I", each) for each in following)


# What only says that it is a picture


def impostors() -> Iterator[Made]:
    """Other things under the names of pictures; no other program may be started for them."""
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n0 0 9 9 rectfill\n"
    preview = struct.pack("<IIIIIIIHH", 0xC6D3D0C5, 32, len(postscript), 0, 0, 0, 0, 0xFFFF, 0) + postscript
    for name, content in {
        "postscript.jpg": postscript,
        "postscript-preview.tif": preview,
        "fits.jpg": b"SIMPLE  =                    T / FITS".ljust(2880),
        "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "document.jpg": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n",
        "page.jpg": b"\n<!DOCTYPE html><html><title>404 Not Found</title></html>",
        "pointer.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "text.jpg": b"not a picture\n",
        "program.png": b"\x7fELF\x02\x01\x01" + bytes(99),
        "archive.jpg": b"PK\x03\x04" + bytes(99),
        "array.png": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(128),
        "pickle.png": b"cposix\nsystem\n(S'touch started'\ntR.",
        "photo.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "photoshop.tif": b"8BPS\0\x01" + bytes(99),
        "portable.png": b"P6 2 2 255\n" + bytes(12),
        "movie.gif": b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41" + bytes(99),
    }.items():
        yield file(name, content, "no picture of an allowed format", "NotAnImage")


# Names. Every picture is one of its own, so that no map can stand under a wrong name unseen.


def plain_names() -> Iterator[Made]:
    """Names that only look odd."""
    names = (" leading.png", "trailing .png", "two  spaces.png", "quote'double\".png", "percent %s {0} %(x)s.png",
             "[brackets].png", "star*.png", "question?.png", "CON.png", "nul.png", "back\\slash.png", "a:b.png",
             "dots...png", "~home.png", "#hash.png", "=cmd|calc.png", "日本語.png",
             "🦊👩‍👩‍👧.png", "Ünïcödé.png", "a.b.c.d.png", "same/name.png", "other/name.png", "dir.jpg/inner.png",
             "UPPER/lower.png")  # fmt: skip
    for name in names:
        yield file(name, picture(name), "names are data")
    yield file("@-looks/like/a/path.png", picture("path"), "folders in folders")
    yield file("deep/" * 40 + "inner.png", picture("deep"), "40 folders deep")


def trap_names() -> Iterator[Made]:
    """Names that do something where they are not quoted: pictures, and for what is said of them, broken files."""
    traps = ("\x1b[31mred\x1b[0m", "\x1b]0;owned\x07", "\x01\x02\x7f", "\r\rreturn", "\n\nlines", "\ttab", "\x9b31m",
             "\u202egpj.exe", "\u2066isolate", "\u2028line", "zero\u200bwidth", "[red]x", "a[/b]", "[link=x]y[/link]",
             "-", "-x", "--help", "--overwrite", "$(touch started)", "`touch started`", ";touch started;", "&|>started",
             "<img src=x onerror=alert(1)>", "&amp;&lt;", "%00%2e%2e", "%2f..%2f", "{a,b}", "!history", "\udcff\udcfe",
             "caf\udce9")  # fmt: skip
    for name in traps:
        yield file(f"{name}.png", picture(name), "a trap as a name")
        yield file(f"{name}.gif", b"broken", "a trap as a name in a message", "NotAnImage")


def twin_names() -> Iterator[Made]:
    """Names that differ in an extension, in case, or in Unicode form alone."""
    for suffix in ("jpg", "png", "jpeg", "JPG", "bmp"):
        yield file(f"twin.{suffix}", picture(f"twin {suffix}"), "names may differ in their extension only")
    yield file("Twin.jpg", picture("Twin"), "names may differ in case only")
    for form in ("NFC", "NFD"):
        yield file(f"{unicodedata.normalize(form, 'é')}.png", picture(form), "one name in two Unicode forms")


def output_names() -> Iterator[Made]:
    """Names that outputs have, and folders that are in the way of other outputs."""
    for name in ("x.png", "x.png.png", "x.png.npy.png", "overview.png", "saliency/x.png", "saliency/x.png.png",
                 "in-the-way.png", "in-the-way.png.png/inner.png", "in-the-way.png.npy/inner.png"):  # fmt: skip
        yield file(name, picture(name), "named like an output")
    for name in ("run.json", "manifest.jsonl"):
        yield file(f"earlier/{name}", b"{}\n", "an earlier run", "absent", listed="NotAnImage")
    yield file("earlier/saliency/x.jpg.png", picture("earlier"), "an output of an earlier run", "absent", listed="ok")


def long_names(folder: Path) -> Iterator[Made]:
    """Names at the limit of the system, whose outputs would have names beyond it."""
    for stem, last in (("n" * 251, "a"), ("n" * 251, "b"), ("\udcff" * 251, "c"), ("N" * 251, "a"), ("長" * 83, "")):
        name = f"{stem[: len(stem) - len(last)]}{last}.png"
        yield file(name, picture(name), "255 bytes long")
    room = 4095 - len(os.fsencode(folder)) - len("//end.png")
    folders = "".join("/" if at % 200 == 199 else "d" for at in range(room)).rstrip("/")
    yield file(f"{folders}/end.png", picture("path"), "its outputs have longer paths than may be", "NameTooLong")


def left_out() -> Iterator[Made]:
    """What a search leaves out without a word, and a list that names it does not."""
    for name in (".hidden.png", ".hidden/inner.png", "@eaDir/thumb.png", "no-extension", "dots.png...", "space.png ",
                 "png", ".png", "..png", "old.png.bak"):  # fmt: skip
        yield file(name, picture(name), "hidden, or not named like a picture", "absent", listed="ok")
    for name in ("._fork.png", "Thumbs.db", ".DS_Store", "notes.txt"):
        yield file(name, b"\0\x05\x16\x07", "what systems and people leave in folders", "absent", listed="NotAnImage")


# What is no file


def not_files(folder: Path) -> Iterator[tuple[Case, Callable[[], object]]]:
    """Folders, pipes, devices and links, some of which lead outside."""

    def link(name: str, target: str, why: str, expected: str, **more: Any) -> tuple[Case, Callable[[], object]]:
        return file(name, b"", why, expected, **more)[0], lambda: (folder / name).symlink_to(target)

    yield link("link.png", "plain.png", "a link to a neighbour", "ok", like="plain.png")
    yield link("link-out.png", "../outside/picture.png", "a link to a picture elsewhere", "ok")
    yield link("link-secret.jpg", "../outside/secret.txt", "a link to what must not be shown", "NotAnImage")
    yield link("link-nowhere.jpg", "nothing", "its target is gone", "NotFound")
    yield link("link-itself.jpg", "link-itself.jpg", "a circle", "NotFound")
    yield link("link-zero.jpg", "/dev/zero", "an endless device", "NotAFile")
    yield link("link-parent", "..", "a link to a folder is not followed", "absent", listed=None)
    yield link("link-folder.jpg", "../outside/folder", "not even with an extension", "absent", listed=None)
    yield file("pipe.jpg", b"", "nobody writes into it", "NotAFile")[0], lambda: os.mkfifo(folder / "pipe.jpg")
    socket = file("socket.jpg", b"", "a socket", "NotAFile")[0]
    yield socket, lambda: os.mknod(folder / "socket.jpg", stat.S_IFSOCK | 0o600)
    yield file("folder.jpg", b"", "an empty folder", "absent", listed=None)[0], lambda: (folder / "folder.jpg").mkdir()
    if hasattr(os, "geteuid") and os.geteuid() != 0:  # root may read everything
        locked = file("locked.png", b"", "no permission", "PermissionDenied")[0]
        yield locked, lambda: (folder / "locked.png").touch(0)
