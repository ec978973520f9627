from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from xai_cli.outputs.overview import Picture, caption, contact_sheet


def picture(text: str = "cat.jpg\ntabby 61%", columns: int = 2, size: tuple[int, int] = (80, 60)) -> Picture:
    colours = ["red", "lime", "blue", "magenta"]
    return text, [Image.new("RGB", size, colours[column]) for column in range(columns)]


def cells(sheet: Image.Image, colour: tuple[int, int, int]) -> int:
    """Return how many pixels of one pure colour the sheet has."""
    return int((np.asarray(sheet) == colour).all(axis=2).sum())


def test_every_image_is_fitted_into_its_cell_on_white() -> None:
    sheet = contact_sheet([picture(), picture(size=(30, 60))], ["photo", "lrp"], cell=100)
    assert cells(sheet, (255, 0, 0)) == cells(sheet, (0, 255, 0)) == 100 * 75 + 50 * 100
    # Margins, two rows of cells apart; title, gap, then two strips of an image and two lines of caption.
    assert sheet.size == (16 + 208 + 16, 16 + 18 + 16 + (75 + 40) + 16 + (100 + 40) + 16)
    border = np.asarray(sheet).copy()
    border[8:-8, 8:-8] = 255
    assert (border == 255).all()


@pytest.mark.parametrize("size", [(6000, 40), (40, 6000)])
def test_a_panorama_is_no_line(size: tuple[int, int]) -> None:
    sheet = contact_sheet([picture(size=size)], ["photo", "lrp"], cell=100)
    assert cells(sheet, (255, 0, 0)) == 100 * 12


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_twelve_pictures_are_no_tower(columns: int) -> None:
    sheet = contact_sheet([picture(columns=columns)] * 12, ["photo", "a", "b", "c"][:columns])
    assert 0.6 < sheet.width / sheet.height < 2.2


@pytest.mark.parametrize(("columns", "length", "lines"), [(11, 6, 2), (20, 10, 2), (23, 8, 3)])
def test_many_columns_are_wrapped_below_titles_of_their_own(columns: int, length: int, lines: int) -> None:
    images = [Image.new("RGB", (80, 80), "red") for _ in range(columns)]
    sheet = contact_sheet([("x", images), ("y", images)], [f"c{column}" for column in range(columns)], cell=40)
    assert cells(sheet, (255, 0, 0)) == 2 * columns * 40 * 40
    assert sheet.width == 16 + length * (40 + 8) - 8 + 16
    pixels = np.asarray(sheet).astype(int)
    red = (pixels[:, 16] == (255, 0, 0)).all(axis=1)
    tops = np.flatnonzero(red[1:] & ~red[:-1]) + 1
    assert len(tops) == 2 * lines
    assert all((pixels[top - 22 : top, 16:56].max(axis=2) < 60).any() for top in tops)  # a title


def test_ten_columns_are_not_wrapped() -> None:
    images = [Image.new("RGB", (80, 80), "red")] * 10
    sheet = contact_sheet([("x", images), ("y", images)], [*"abcdefghij"], cell=40)
    assert sheet.size == (16 + 10 * (40 + 8) - 8 + 16, 16 + 18 + 2 * (16 + 40 + 4 + 18) + 16)


def test_a_missing_picture_leaves_its_cell_empty() -> None:
    text, (photo, _) = picture()
    sheet = contact_sheet([(text, [photo, None])], ["photo", "lrp"], cell=100)
    assert cells(sheet, (255, 0, 0)) == 100 * 75
    assert sheet.size == contact_sheet([picture()], ["photo", "lrp"], cell=100).size


def test_palette_pictures_and_extreme_shapes_are_drawn() -> None:
    palette_image = Image.new("P", (7, 7))
    palette_image.putpalette([0, 0, 255] * 256)
    sheet = contact_sheet([("x", [Image.new("RGB", (20000, 1), "red"), palette_image])], ["photo", "lrp"], cell=50)
    assert cells(sheet, (0, 0, 255)) == 50 * 50
    assert cells(sheet, (255, 0, 0)) == 50 * 12


@pytest.mark.parametrize("name", ["x" * 300, "a\nb\x1b[31m\u202e.jpg", "caf\udce9.jpg", "[red]<b>%s{0}.jpg", "猫.jpg"])
def test_a_hostile_name_changes_neither_the_layout_nor_the_margin(name: str) -> None:
    plain = contact_sheet([picture(caption("cat.jpg", "tabby", 0.61))], ["photo", "lrp"], cell=100)
    hostile = contact_sheet([picture(caption(name, "tabby", 0.61))], ["photo", "lrp"], cell=100)
    assert hostile.size == plain.size
    assert (np.asarray(hostile)[:, -16:] == 255).all()


def test_a_caption_is_two_lines_without_control_characters() -> None:
    assert caption("a\nb\x1b[31m\u202e\u2028\udce9.jpg", "tab\tby", 0.613) == "a?b?[31m???.jpg\ntab?by 61%"


def test_a_long_name_keeps_its_end() -> None:
    one, other = (picture(caption("x" * 300 + end, "tabby", 0.61)) for end in ("1.jpg", "2.jpg"))
    sheets = [np.asarray(contact_sheet([row], ["photo", "lrp"])) for row in (one, other)]
    assert (sheets[0] != sheets[1]).any()


def test_what_cannot_be_laid_out_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([], ["photo"])
    with pytest.raises(ValueError, match="has 2 images for 3 columns"):
        contact_sheet([picture()], ["photo", "lrp", "ig"])
