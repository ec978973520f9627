"""The overview of a run: a contact sheet of photos, each beside its pictures by method, on one white page."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from math import ceil, sqrt

from PIL import Image, ImageDraw, ImageFont

Picture = tuple[str, Sequence[Image.Image | None]]
"""A caption of one or more lines, then the photo and one picture per method; None leaves its cell empty."""

MARGIN = 16
GAP = 8  # between two cells
LINE = 18
THINNEST = 12  # pixels; a panorama would be a line that nobody sees
WIDEST = 10  # cells on a line; more make a page on which nothing can be seen
INK = (40, 40, 40)


def contact_sheet(rows: Sequence[Picture], columns: Sequence[str], cell: int = 192) -> Image.Image:
    """Return one white RGB page with a row of cells for each picture, titled by `columns`, captioned below.

    Each image is fitted into a square of `cell` pixels. Where there are few columns several pictures stand side by
    side, so that the page stays about as wide as it is high. Where there are many, each picture has several lines of
    cells, as long as one another, with titles of their own.

    Raises:
        ValueError: if there is nothing to draw, or a picture has more or fewer images than there are columns.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one picture, got none")
    for text, images in rows:
        if len(images) != len(columns):
            raise ValueError(f"the picture {text!r} has {len(images)} images for {len(columns)} columns; give one each")
    strips = _wrapped(rows, columns, cell) if len(columns) > WIDEST else _lined_up(rows, columns, cell)
    return _stacked(strips, gap=2 * GAP, margin=MARGIN)


def caption(name: str, label: str, probability: float) -> str:
    """Return the caption of a photo: its name, and below it the predicted class with its probability."""
    return f"{_plain(name)}\n{_plain(label)} {probability:.0%}"


def _lined_up(rows: Sequence[Picture], columns: Sequence[str], cell: int) -> list[Image.Image]:
    """Return the titles, and below them the pictures, several side by side if there is room."""
    across = _pictures_across(len(rows), len(columns), cell)
    strips = [_strip(rows[start : start + across], cell) for start in range(0, len(rows), across)]
    return [_titles(columns, across, cell), *strips]


def _wrapped(rows: Sequence[Picture], columns: Sequence[str], cell: int) -> list[Image.Image]:
    """Return for each picture lines of cells, each below its titles."""
    length = ceil(len(columns) / ceil(len(columns) / WIDEST))
    strips = []
    for text, images in rows:
        for start in range(0, len(columns), length):
            part = slice(start, start + length)
            cells = _strip([("" if start else text, images[part])], cell)
            strips.append(_stacked([_titles(columns[part], 1, cell), cells], gap=GAP // 2))
    return strips


def _stacked(strips: Sequence[Image.Image], *, gap: int, margin: int = 0) -> Image.Image:
    """Return a white page with one strip below the other."""
    width = max(strip.width for strip in strips)
    height = sum(strip.height + gap for strip in strips) - gap
    page = Image.new("RGB", (width + 2 * margin, height + 2 * margin), "white")
    top = margin
    for strip in strips:
        page.paste(strip, (margin, top))
        top += strip.height + gap
    return page


def _pictures_across(pictures: int, columns: int, cell: int) -> int:
    """Return how many pictures stand side by side for a page of about 4:3."""
    width, height = columns * (cell + GAP), cell + 2 * LINE
    return min(pictures, max(1, round(sqrt(pictures * height * 4 / (width * 3)))))


def _titles(columns: Sequence[str], across: int, cell: int) -> Image.Image:
    strip = Image.new("RGB", (across * _pitch(len(columns), cell) - 2 * GAP, LINE), "white")
    drawing = ImageDraw.Draw(strip)
    for group in range(across):
        for column, title in enumerate(columns):
            middle = group * _pitch(len(columns), cell) + column * (cell + GAP) + cell // 2
            drawing.text((middle, 0), _shortened(_plain(title), 15, cell), "black", _font(15), anchor="ma")
    return strip


def _strip(rows: Sequence[Picture], cell: int) -> Image.Image:
    """Return pictures side by side, as high as the highest of them, with their captions."""
    pictures = [[_fitted(image, cell) if image else None for image in images] for _, images in rows]
    captions = [text.split("\n") for text, _ in rows]
    height = max((image.height for image in chain(*pictures) if image), default=cell)
    pitch = _pitch(len(pictures[0]), cell)
    strip = Image.new("RGB", (len(rows) * pitch - 2 * GAP, height + 4 + LINE * max(map(len, captions))), "white")
    drawing = ImageDraw.Draw(strip)
    for group, (images, lines) in enumerate(zip(pictures, captions, strict=True)):
        for column, image in enumerate(images):
            if image:
                left = group * pitch + column * (cell + GAP) + (cell - image.width) // 2
                strip.paste(image, (left, height - image.height))
        for number, line in enumerate(lines):
            text = _shortened(_plain(line), 13, pitch - 2 * GAP)
            drawing.text((group * pitch, height + 4 + LINE * number), text, INK, _font(13))
    return strip


def _pitch(columns: int, cell: int) -> int:
    """Return the distance between two pictures side by side: their cells, and a wider gap."""
    return columns * (cell + GAP) + GAP


def _fitted(image: Image.Image, cell: int) -> Image.Image:
    scale = cell / max(image.size)
    size = max(THINNEST, round(image.width * scale)), max(THINNEST, round(image.height * scale))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def _plain(text: str) -> str:
    """Return a name from outside as one line: whatever controls, breaks or turns text around becomes `?`."""
    return "".join("?" if unicodedata.category(sign) in {"Cc", "Cf", "Cs", "Zl", "Zp"} else sign for sign in text)


def _shortened(text: str, size: int, width: int) -> str:
    """Return the text with its middle left out until it fits the width in pixels."""
    # No sign that is seen is narrower than 3 pixels; to measure a path of thousands again and again takes minutes.
    kept = min(len(text), width // 3)
    short = text
    while kept and _font(size).getlength(short) > width:
        kept -= 1
        short = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
    return short


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
