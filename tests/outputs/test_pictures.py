from __future__ import annotations

import zlib
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from xai_cli.heatmaps import palette, quantise, strength
from xai_cli.images.geometry import Geometry
from xai_cli.outputs.pictures import display_copy, draw, encode_png

LANDSCAPE = Geometry((500, 375), (62, 0, 437, 375), (224, 224))
GEOMETRIES = {
    "landscape": LANDSCAPE,
    "portrait": Geometry((375, 500), (23.4375, 85.9375, 351.5625, 414.0625), (224, 224)),
    "fractional": Geometry((101, 67), (17.3, 0.4, 83.9, 66.2), (96, 128)),
    "padded": Geometry((400, 200), (0, -100, 400, 300), (160, 160)),
    "enlarged": Geometry((40, 30), (5, 0, 35, 30), (224, 224)),
}


def grey_photo(width: int, height: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), 128, np.uint8)


def noise_photo(width: int, height: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def centre_of_colour(picture: Image.Image) -> tuple[float, float]:
    """Return (x, y), in pixel edges, of the mean of all that is not grey."""
    pixels = np.asarray(picture).astype(int)
    y, x = np.nonzero(np.ptp(pixels, axis=2) > 16)
    weight = np.ptp(pixels, axis=2)[y, x]
    return np.average(x + 0.5, weights=weight), np.average(y + 0.5, weights=weight)


@pytest.mark.parametrize("reduction", [1, 2, 3.7])
@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("place", [(0.3, 0.4), (0.62, 0.55)])
def test_a_hot_spot_lands_on_its_pixel(name: str, place: tuple[float, float], reduction: float) -> None:
    geometry = GEOMETRIES[name]
    (w, h), (width, height) = geometry.map, geometry.original
    row, column = int(place[1] * h), int(place[0] * w)
    relevance = np.zeros((h, w), np.float32)
    half = 2 + int(1.5 * reduction * w / (geometry.seen[2] - geometry.seen[0]))  # 3 pixels of the picture, or more
    relevance[row - half : row + half + 1, column - half : column + half + 1] = 1
    photo = grey_photo(round(width / reduction), round(height / reduction))
    x, y = geometry.to_original(column + 0.5, row + 0.5)
    found = centre_of_colour(draw(photo, relevance, geometry, signed=True, render="overlay"))
    assert found == pytest.approx((x * photo.shape[1] / width, y * photo.shape[0] / height), abs=0.25)


def test_the_seen_part_is_lighter_and_its_border_is_drawn() -> None:
    geometry = Geometry((500, 375), (100.5, 50, 300, 250), (50, 50))
    zero = np.zeros((50, 50), np.float32)
    pixels = np.asarray(draw(grey_photo(500, 375), zero, geometry, signed=True, render="overlay"))[:, :, 0]
    seen = pixels[50:250, 100:300]  # the pixel at 100 is half seen
    assert np.unique(seen).tolist() == [50 + 128 * 165 // 255]
    assert (pixels[49, 99:301] == 255).all()
    assert (pixels[49:251, 99] == 255).all()
    assert (pixels[250, 99:301] == 255).all()
    assert (pixels[49:251, 300] == 255).all()
    outside = np.concatenate([pixels[:49].ravel(), pixels[251:].ravel()])
    assert set(outside.tolist()) == {48, 96}  # dark, and the hatch
    assert outside.max() < seen.min()


@pytest.mark.parametrize("signed", [True, False])
def test_zero_relevance_leaves_the_seen_photo_readable_and_grey(signed: bool) -> None:
    photo = noise_photo(60, 60)
    geometry = Geometry((60, 60), (0, 0, 60, 60), (30, 30))
    drawn = draw(photo, np.zeros((30, 30), np.float32), geometry, signed=signed, render="overlay")
    pixels = np.asarray(drawn)
    grey = np.asarray(Image.fromarray(photo).convert("L"))
    assert np.ptp(pixels, axis=2).max() == 0
    assert np.corrcoef(pixels[:, :, 0].ravel(), grey.ravel())[0, 1] > 0.999


def test_the_photo_shows_through_the_strongest_colour() -> None:
    photo = grey_photo(40, 40)
    photo[:, 20:] = 250
    geometry = Geometry((40, 40), (0, 0, 40, 40), (8, 8))
    pixels = np.asarray(draw(photo, np.ones((8, 8), np.float32), geometry, signed=True, render="overlay")).astype(int)
    np.testing.assert_allclose(pixels[5, 5], 0.2 * 132 + 0.8 * palette(True)[254].astype(int), atol=1.5)
    assert (pixels[5, 30] - pixels[5, 5] >= 14).all()


@pytest.mark.parametrize("signed", [True, False])
def test_colours_are_the_palette_mixed_with_the_grey_photo_but_for_one_level(signed: bool) -> None:
    photo, geometry = noise_photo(64, 48), Geometry((64, 48), (0, 0, 64, 48), (64, 48))
    relevance = np.random.default_rng(1).standard_normal((48, 64), np.float32)
    pixels = np.asarray(draw(photo, relevance, geometry, signed=signed, render="overlay", limit=2.0)).astype(int)
    indices = quantise(relevance, signed=signed, limit=2.0)
    opacity = 0.8 * (np.sqrt(strength(indices, True)) if signed else strength(indices, False))[..., None]
    tones = 50 + np.asarray(Image.fromarray(photo).convert("L")).astype(int)[..., None] * 165 // 255
    mixed = opacity * palette(signed)[indices] + (1 - opacity) * tones
    assert np.abs(pixels - mixed).max() <= 2  # one level, and the rounding of the opacity and of the mixture
    assert not (pixels % 3).any()


@pytest.mark.parametrize(("width", "coloured"), [(60000, [29999, 30000]), (60, [29, 30])])
def test_the_seen_pixel_of_a_panorama_is_drawn(width: int, coloured: list[int]) -> None:
    geometry = Geometry((60000, 1), (29999.5, 0, 30000.5, 1), (224, 224))
    relevance = np.ones((224, 224), np.float32)
    pixels = np.asarray(draw(noise_photo(width, 1), relevance, geometry, signed=True, render="overlay")).astype(int)
    assert np.nonzero(np.ptp(pixels, axis=2) > 50)[1].tolist() == coloured


@pytest.mark.parametrize(("signed", "expected"), [(True, [[0, 127], [190, 254]]), (False, [[0, 0], [128, 255]])])
def test_a_heatmap_file_holds_the_quantised_map(signed: bool, expected: list[list[int]]) -> None:
    relevance = np.array([[-2, 0], [1, 2]], np.float32)
    geometry = Geometry((500, 375), (62, 0, 437, 375), (2, 2))
    heatmap = draw(grey_photo(500, 375), relevance, geometry, signed=signed, render="heatmap", limit=2.0)
    stored = Image.open(BytesIO(encode_png(heatmap)))
    assert stored.mode == "P"
    assert np.asarray(stored).tolist() == expected
    assert stored.convert("RGB").getpixel((1, 1)) == tuple(palette(signed)[expected[1][1]])


def test_side_by_side_is_the_untouched_photo_and_the_overlay() -> None:
    photo = noise_photo(500, 375)
    relevance = np.random.default_rng(1).random((224, 224), np.float32)
    both = np.asarray(draw(photo, relevance, LANDSCAPE, signed=False, render="side-by-side"))
    overlay = np.asarray(draw(photo, relevance, LANDSCAPE, signed=False, render="overlay"))
    np.testing.assert_array_equal(both[:, :500], photo)
    np.testing.assert_array_equal(both[:, -500:], overlay)
    assert (both[:, 500:-500] == 255).all()


LINE = round(0.5 * (50 + 128 * 165 // 255) + 0.5 * 255)
"""A line on the grey photo."""


def halves(where: int) -> NDArray[np.float32]:
    """A map of segments (10, 10): to the left of column `where`, and to the right, both of too little to be seen."""
    return np.where(np.arange(10) < where, 0, 1e-6).astype(np.float32) * np.ones((10, 1), np.float32)


@pytest.mark.parametrize(
    ("geometry", "size", "expected"),
    [
        (Geometry((100, 100), (0, 0, 100, 100), (10, 10)), (100, 100), [30]),
        (Geometry((100, 100), (20, 20, 80, 80), (10, 10)), (100, 100), [38]),
        (Geometry((100, 100), (-50, -50, 150, 150), (10, 10)), (100, 100), [10]),
        (Geometry((100, 100), (0.5, 0, 99.5, 100), (10, 10)), (100, 100), [30]),  # at 30.2: 30.5 is beyond it
        (Geometry((2000, 2000), (0, 0, 2000, 2000), (10, 10)), (1000, 1000), [299, 300]),
        (Geometry((2000, 20), (0, 0, 2000, 20), (10, 10)), (2000, 20), [598, 599, 600, 601]),
        (Geometry((5, 5), (0, 0, 5, 5), (10, 10)), (5, 5), [1]),  # of the two places in a pixel the second
    ],
)
def test_lines_part_segments_exactly_where_they_lie_on_the_photo(
    geometry: Geometry, size: tuple[int, int], expected: list[int]
) -> None:
    for turned in (False, True):
        if turned:
            seen = geometry.seen
            geometry = Geometry(geometry.original[::-1], (seen[1], seen[0], seen[3], seen[2]), geometry.map)
        relevance = halves(3).T if turned else halves(3)
        photo = grey_photo(*(size[::-1] if turned else size))
        drawn = draw(photo, relevance, geometry, signed=True, render="overlay", limit=1.0, outlined=True)
        pixels = np.asarray(drawn)[..., 0]
        plain = np.asarray(draw(photo, relevance, geometry, signed=True, render="overlay", limit=1.0))[..., 0]
        changed = (pixels != plain).any(axis=1 if turned else 0)
        assert np.flatnonzero(changed).tolist() == expected
        assert set(pixels[pixels != plain].tolist()) == {LINE}


def test_colours_of_segments_do_not_run_into_each_other_and_the_unseen_part_has_no_lines() -> None:
    photo, relevance = noise_photo(300, 200), np.sign(halves(5) - 1e-7)
    geometry = Geometry((300, 200), (50, 0, 250, 200), (10, 10))
    plain, outlined = (
        np.asarray(draw(photo, relevance, geometry, signed=True, render="overlay", outlined=each)).astype(int)
        for each in (False, True)
    )
    assert (plain[:, :50] == outlined[:, :50]).all()
    assert (plain[:, 250:] == outlined[:, 250:]).all()
    assert (plain[:, 140:160] != outlined[:, 140:160]).any(axis=2).mean() > 0.9
    blue, red = outlined[:, 50:150], outlined[:, 151:250]
    assert (blue[..., 2] > blue[..., 0]).all()
    assert (red[..., 0] > red[..., 2]).all()


def test_a_heatmap_has_no_lines_and_of_two_pictures_side_by_side_only_the_overlay_has() -> None:
    photo, geometry = noise_photo(100, 100), Geometry((100, 100), (0, 0, 100, 100), (10, 10))

    def drawn(render: str, outlined: bool) -> NDArray[np.uint8]:
        return np.asarray(draw(photo, halves(3), geometry, signed=True, render=render, limit=1.0, outlined=outlined))

    np.testing.assert_array_equal(drawn("heatmap", True), drawn("heatmap", False))
    np.testing.assert_array_equal(drawn("side-by-side", True)[:, :100], photo)
    np.testing.assert_array_equal(drawn("side-by-side", True)[:, -100:], drawn("overlay", True))
    assert (drawn("overlay", True) != drawn("overlay", False)).any()


def test_what_cannot_be_drawn_is_refused() -> None:
    photo, zero = grey_photo(500, 375), np.zeros((224, 224), np.float32)
    with pytest.raises(ValueError, match="not as 'none'"):
        draw(photo, zero, LANDSCAPE, signed=True, render="none")
    with pytest.raises(ValueError, match=r"expected a map of the model's input, \(224, 224\), got one of \(7, 7\)"):
        draw(photo, zero[:7, :7], LANDSCAPE, signed=True, render="overlay")
    for limit in (None, 1.0):
        with pytest.raises(ValueError, match="must be finite"):
            draw(photo, np.full_like(zero, np.nan), LANDSCAPE, signed=True, render="overlay", limit=limit)


def ramp_photo(width: int, height: int) -> NDArray[np.uint8]:
    return (np.add.outer(np.arange(height), np.arange(width))[..., None] // [1, 2, 3]).astype(np.uint8)


def photo_of_few_tones(width: int, height: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).choice(np.array([0, 1, 255], np.uint8), (height, width, 3), p=[0.8, 0.19, 0.01])


@pytest.mark.parametrize("make", [grey_photo, noise_photo, ramp_photo, photo_of_few_tones])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (2, 2), (500, 375), (901, 700)])
def test_an_rgb_png_gives_its_pixels_back_and_the_same_bytes_again(
    size: tuple[int, int], make: Callable[[int, int], NDArray[np.uint8]]
) -> None:
    photo = make(*size)
    data = encode_png(Image.fromarray(photo))
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(data))), photo)
    assert encode_png(Image.fromarray(photo.copy())) == data
    Image.open(BytesIO(data)).verify()
    stream = zlib.decompressobj()
    assert len(stream.decompress(data[41:-16])) == size[1] * (1 + 3 * size[0])  # the IDAT chunk without its ends
    assert stream.eof
    assert stream.unused_data == b""


def test_a_display_copy_is_reduced_but_never_enlarged() -> None:
    photo = grey_photo(2000, 3)
    assert display_copy(photo, 2000) is photo
    assert display_copy(photo, 500).shape == (1, 500, 3)
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    assert display_copy(stripes, 100).std() < 3  # antialiased: stripes become grey, not stripes
